#!/usr/bin/env python3
"""Writes the GGUF fixtures through the `gguf` package, llama.cpp's own writer and reader.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-golden.txt
    .venv/bin/python scripts/make_gguf_golden.py

tests/data/gguf/
  blocks.gguf   random blocks of every quantised type under the type's name, and what
                gguf.quants.dequantize makes of them, as F32 tensors NAME.values
  llama/        config.json and model.safetensors of a small random Llama (float16), and what
                convert_hf_to_gguf.py would write of it: f16.gguf, q8_0.gguf, q4_0.gguf, and
                split-0000N-of-00003.gguf, the Q8_0 file in three; with a tokenizer that knows
                lower-case letters, blanks and ten merges

Everything is drawn from fixed seeds.
"""

import json
import pathlib
import shutil

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests/data/gguf"
LIMIT_BYTES = 250_000

# Where the float16 scales stand in a block of each type.
SCALES = {
    Type.Q8_0: (0,), Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2),
    Type.Q2_K: (80, 82), Type.Q3_K: (108,), Type.Q4_K: (0, 2), Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
}
EXTREMES = np.array([0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x83ff, 0x0400, 0x7bff, 0xfbff,
                     0x3c00], dtype="<u2")  # zeros, subnormals, the smallest normal, the largest


def random_blocks(kind, generator):
    """All bit patterns but infinite and NaN scales, which no quantiser writes."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = 24 if elements == 32 else 4
    blocks = generator.integers(0, 256, (count, size), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = generator.integers(0, 0x7c00, count).astype("<u2")
        scales |= generator.integers(0, 2, count).astype("<u2") << 15
        extreme = generator.random(count) < 0.4
        scales[extreme] = generator.choice(EXTREMES, extreme.sum())
        blocks[:, at:at + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks.reshape(1, -1)


def make_blocks(path):
    generator = np.random.default_rng(71)
    writer = gguf.GGUFWriter(path, "blocks")
    for kind in SCALES:
        blocks = random_blocks(kind, generator)
        values = gguf.quants.dequantize(blocks, kind)
        assert np.isfinite(values).all()
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        writer.add_tensor(f"{kind.name}.values", values.astype(np.float32))
    finish(writer)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# A small Llama. Widths are multiples of 32, as the types with blocks of 32 need.

CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=40, hidden_size=32,
    intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0,
    hidden_act="silu", tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def llama_tensors(generator):
    config = CONFIG
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in {
            "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden), "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner)}.items()}
    shapes |= {"model.norm": (hidden,), "lm_head": (config["vocab_size"], hidden)}
    return {name + ".weight": generator.normal(float(len(shape) == 1), 0.3, shape)
            .astype(np.float16) for name, shape in shapes.items()}


MERGES = ("t h", "th e", "Ġ the", "a n", "an d", "Ġ and", "i n", "Ġ in", "o n", "e r")
TOKENS = ["<unk>", "<s>", "</s>", "Ġ", *"abcdefghijklmnopqrstuvwxyz",
          *(merge.replace(" ", "") for merge in MERGES)]


def add_tokenizer(writer):
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * 37)
    writer.add_token_merges(MERGES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(CONFIG["bos_token_id"])
    writer.add_eos_token_id(CONFIG["eos_token_id"])
    writer.add_add_bos_token(False)


def interleave(rows, heads):
    """What the converter does to rotary rows: (heads, 2, n, …) becomes (heads, n, 2, …)."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def converted(name, tensor):
    """Name and content under which llama.cpp's converter stores a tensor."""
    if "q_proj" in name:
        tensor = interleave(tensor, CONFIG["num_attention_heads"])
    if "k_proj" in name:
        tensor = interleave(tensor, CONFIG["num_key_value_heads"])
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        layer, stem = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{NAMES[stem]}.weight", tensor
    return NAMES[stem] + ".weight", tensor


def make_llama_gguf(path, tensors, kind, split=None):
    writer = gguf.GGUFWriter(path, "llama", **(split or {}))
    writer.add_name("Small Llama")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_vocab_size(CONFIG["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name}"])
    add_tokenizer(writer)
    for name, tensor in tensors.items():
        name, tensor = converted(name, tensor)
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor.astype(np.float32))  # as the converter does
        elif kind == Type.F16:
            writer.add_tensor(name, tensor)
        else:
            blocks = gguf.quants.quantize(tensor.astype(np.float32), kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
    finish(writer)


def make_llama(folder):
    folder.mkdir()
    tensors = llama_tensors(np.random.default_rng(72))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for kind in (Type.F16, Type.Q8_0, Type.Q4_0):
        make_llama_gguf(folder / f"{kind.name.lower()}.gguf", tensors, kind)
    per_file = -(-len(tensors) // 3)
    make_llama_gguf(folder / "split.gguf", tensors, Type.Q8_0, dict(split_max_tensors=per_file))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    make_blocks(FOLDER / "blocks.gguf")
    make_llama(FOLDER / "llama")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise SystemExit(f"the fixtures take {size} bytes, expected at most {LIMIT_BYTES}")
    print(f"{size / 1000:.0f} kB in {FOLDER}")


if __name__ == "__main__":
    main()
