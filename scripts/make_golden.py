#!/usr/bin/env python3
"""Writes the golden fixtures: what Hugging Face transformers computes from small checkpoints.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-golden.txt
    .venv/bin/python scripts/make_golden.py

The reference is float32 arithmetic on weights upcast from the file, eager attention, one thread.

tests/data/golden/NAME/ is a checkpoint as people's disks have them (no tokenizer), and beside it
  golden.json         prompts and greedy ids, the tolerance and how close greedy's decisions were
  golden.safetensors  F32: logits.I (tokens, vocab_size) of prompt I, and of prompt `hidden_prompt`
                      hidden (layers + 1, tokens, hidden_size): the embeddings, the output of each
                      layer but the last, and the last layer's output after the final norm
tests/data/demo-gptj/golden.json has texts with their ids, greedy continuations and one scored text
of the trained demo model.

Everything is drawn from fixed seeds. Greedy ids are only worth comparing where rounding cannot
change them: a prompt whose smallest margin between best and second-best logit falls below ten
tolerances is redrawn, and the script checks what it wrote by loading it again.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads, so it must come first

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (AutoModelForCausalLM, BloomConfig, GPT2Config, GPTJConfig, GPTNeoXConfig,
                          LlamaConfig, MistralConfig, OPTConfig, PreTrainedConfig, Qwen2Config,
                          Qwen3Config)
from transformers.utils import logging

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/data"
GOLDEN_LIMIT_BYTES = 7_000_000
NEW_TOKENS = 24
HIDDEN_LENGTH = 7  # hidden states are kept of the prompt of this length, to find where values part
REDRAWS = 500
TOLERANCE_NOTE = (
    "4 * eps(float32) * sqrt(hidden_size) * (2 * num_hidden_layers + 1) * max|logit|: rounding in "
    "a dot product of n terms grows as a random walk, sqrt(n) * eps times the norms, once per "
    "residual contribution and once for the head; 4 covers what attention and norms amplify. "
    "float64_deviation is the largest distance between these logits and the same model's in "
    "float64, as measured.")


@dataclasses.dataclass(frozen=True)
class Case:
    """One random checkpoint: its shape, how its file spells things, and which prompts it gets."""
    name: str
    config: PreTrainedConfig
    architecture: str
    dtype: torch.dtype
    seed: int
    lengths: tuple[int, ...] = (1, 2, 7, 33, 65, 130)
    # Renames or adds tensors after the model's own names; called with (tensors, config).
    as_on_disk: Callable = lambda tensors, config: tensors
    v4_spelling: bool = False
    shards: int = 1
    # Of the blocks' projections, where greedy texts would else repeat one token for ever: a tied
    # head on an embedding as large as what the blocks add to it says again what it read; behind
    # norms that follow the branches, the norms' biases drown what it read.
    gain: float = 1.2


def without_prefix(tensors, config):
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_gpt2_masks(tensors, config):
    """OpenAI's GPT-2 as the hub has it carries every layer's causal mask."""
    size = config.n_positions
    mask = torch.ones(size, size, dtype=torch.uint8).tril().view(1, 1, size, size)
    masks = {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(config.n_layer)}
    return tensors | masks


def with_gptj_masks(tensors, config):
    """EleutherAI's GPT-J likewise, as booleans, with the masked value as a tensor of rank 0."""
    size = config.n_positions
    mask = torch.ones(size, size, dtype=torch.bool).tril().view(1, 1, size, size)
    masks = {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(config.n_layer)}
    values = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e9)
              for i in range(config.n_layer)}
    return tensors | masks | values


def with_embed_out(tensors, config):
    """What transformers 4 calls GPT-NeoX's head."""
    return {name.replace("lm_head", "embed_out"): tensor for name, tensor in tensors.items()}


def opt_from_metaseq(tensors, config):
    """The first conversions of OPT name the decoder alone and have no model around it."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def cases():
    """Shapes no kernel likes: odd widths and vocabularies, five layers for one to four ranks."""
    gpt2 = dict(n_layer=5, n_positions=160)
    gptj = dict(n_layer=5)
    llama = dict(num_hidden_layers=5, max_position_embeddings=160)
    return [
        Case("gpt2-f32", GPT2Config(vocab_size=101, n_embd=36, n_head=3, bos_token_id=100,
                                    eos_token_id=100, **gpt2),
             "GPT2LMHeadModel", torch.float32, 101, as_on_disk=with_gpt2_masks, v4_spelling=True),
        Case("gpt2-untied-f16",
             GPT2Config(vocab_size=113, n_embd=40, n_head=5, n_inner=77, activation_function="gelu",
                        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, **gpt2),
             "GPT2LMHeadModel", torch.float16, 102, as_on_disk=without_prefix),
        Case("gptj-bf16", GPTJConfig(vocab_size=151, n_embd=60, n_head=3, rotary_dim=12,
                                     n_positions=160, bos_token_id=150, eos_token_id=150, **gptj),
             "GPTJForCausalLM", torch.bfloat16, 103),
        Case("gptj-f16-sharded",
             GPTJConfig(vocab_size=163, n_embd=44, n_head=2, rotary_dim=10, n_inner=99,
                        n_positions=96, bos_token_id=1, eos_token_id=1, **gptj),
             "GPTJForCausalLM", torch.float16, 104, lengths=(1, 7, 33, 65),
             as_on_disk=with_gptj_masks, v4_spelling=True, shards=3),
        Case("gptj-tied-f32",
             GPTJConfig(vocab_size=97, n_embd=36, n_head=3, rotary_dim=8, n_inner=50,
                        n_positions=160, tie_word_embeddings=True,
                        bos_token_id=96, eos_token_id=96, **gptj),
             "GPTJForCausalLM", torch.float32, 105, lengths=(1, 7, 33, 130)),
        Case("llama-gqa-f32",
             LlamaConfig(vocab_size=131, hidden_size=42, intermediate_size=93,
                         num_attention_heads=6, num_key_value_heads=2, head_dim=10,
                         rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, **llama),
             "LlamaForCausalLM", torch.float32, 106, lengths=(1, 2, 7, 33, 130),
             v4_spelling=True),
        Case("llama3-rope-bf16-tied",
             LlamaConfig(vocab_size=139, hidden_size=48, intermediate_size=104,
                         num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                         rope_parameters=dict(rope_type="llama3", rope_theta=10000.0, factor=8.0,
                                              low_freq_factor=1.0, high_freq_factor=4.0,
                                              original_max_position_embeddings=32),
                         bos_token_id=136, eos_token_id=[137, 138], **llama),
             "LlamaForCausalLM", torch.bfloat16, 107),
        Case("llama-bias-f16",
             LlamaConfig(vocab_size=97, hidden_size=40, intermediate_size=77,
                         num_attention_heads=5, attention_bias=True, mlp_bias=True,
                         rope_parameters=dict(rope_type="linear", rope_theta=5000.0, factor=2.5),
                         bos_token_id=1, eos_token_id=2, **llama),
             "LlamaForCausalLM", torch.float16, 108, lengths=(1, 2, 7, 33, 65), v4_spelling=True),
        Case("llama-long-f32",
             LlamaConfig(vocab_size=97, hidden_size=48, intermediate_size=51,
                         num_attention_heads=6, num_key_value_heads=3, num_hidden_layers=5,
                         max_position_embeddings=288, bos_token_id=1, eos_token_id=2),
             "LlamaForCausalLM", torch.float32, 109, lengths=(7, 65, 129, 230)),
        Case("gptneox-f16",
             GPTNeoXConfig(vocab_size=103, hidden_size=48, num_attention_heads=2,
                           num_hidden_layers=5, intermediate_size=93, max_position_embeddings=160,
                           rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                partial_rotary_factor=0.25),
                           bos_token_id=0, eos_token_id=0),
             "GPTNeoXForCausalLM", torch.float16, 110, lengths=(1, 7, 33, 130), v4_spelling=True,
             as_on_disk=with_embed_out),
        Case("gptneox-sequential-bf16",
             GPTNeoXConfig(vocab_size=103, hidden_size=36, num_attention_heads=3,
                           num_hidden_layers=5, intermediate_size=77, max_position_embeddings=96,
                           use_parallel_residual=False, hidden_act="gelu_fast",
                           rope_parameters=dict(rope_type="default", rope_theta=5000.0,
                                                partial_rotary_factor=0.5),
                           bos_token_id=0, eos_token_id=0),
             "GPTNeoXForCausalLM", torch.bfloat16, 111, lengths=(2, 7, 65)),
        Case("opt-f16",
             OPTConfig(vocab_size=109, hidden_size=40, num_attention_heads=4, num_hidden_layers=5,
                       ffn_dim=71, word_embed_proj_dim=40, max_position_embeddings=160,
                       bos_token_id=2, eos_token_id=2),
             "OPTForCausalLM", torch.float16, 112, lengths=(1, 7, 33, 130)),
        Case("opt-post-norm-projected-f16",
             OPTConfig(vocab_size=109, hidden_size=48, num_attention_heads=3, num_hidden_layers=5,
                       ffn_dim=60, word_embed_proj_dim=28, do_layer_norm_before=False,
                       max_position_embeddings=96, bos_token_id=2, eos_token_id=2),
             "OPTForCausalLM", torch.float16, 118, lengths=(2, 7, 65), as_on_disk=opt_from_metaseq,
             gain=0.6),
        Case("bloom-bf16",
             BloomConfig(vocab_size=127, hidden_size=60, n_layer=5, n_head=6, bos_token_id=1,
                         eos_token_id=2),
             "BloomForCausalLM", torch.bfloat16, 114, lengths=(1, 7, 65, 130),
             as_on_disk=without_prefix, gain=3.0),
        Case("mistral-window-bf16",
             MistralConfig(vocab_size=113, hidden_size=40, intermediate_size=62, head_dim=12,
                           num_attention_heads=4, num_key_value_heads=2, sliding_window=20,
                           bos_token_id=1, eos_token_id=2, **llama),
             "MistralForCausalLM", torch.bfloat16, 115, lengths=(7, 20, 33, 130), v4_spelling=True),
        Case("qwen2-f32-tied",
             Qwen2Config(vocab_size=101, hidden_size=36, intermediate_size=52,
                         num_attention_heads=6, num_key_value_heads=2, tie_word_embeddings=True,
                         bos_token_id=None, eos_token_id=[99, 100], **llama),
             "Qwen2ForCausalLM", torch.float32, 116, lengths=(1, 7, 33)),
        Case("qwen3-bf16",
             Qwen3Config(vocab_size=107, hidden_size=40, intermediate_size=66, head_dim=16,
                         num_attention_heads=4, num_key_value_heads=2,
                         bos_token_id=None, eos_token_id=106, **llama),
             "Qwen3ForCausalLM", torch.bfloat16, 117, lengths=(1, 7, 65)),
    ]


def randomise(model, dtype, gain, generator):
    """Redraws every parameter so that it matters, rounded to what the file will hold.

    A freshly built model would not do: biases are 0, norms 1, attention nearly uniform and logits
    too close to tell right from wrong. Queries and keys get a gain that makes attention peaked.
    """
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            is_norm = any(part in name for part in ("ln_", "norm")) and name.endswith("weight")
            value = 1 + 0.3 * noise if is_norm else 0.2 * noise
        elif any(part in name for part in ("wte", "wpe", "embed_", "word_embeddings")):
            value = 0.3 * noise
        else:
            fan_in = parameter.shape[0 if ".c_" in name else 1]  # GPT-2's Conv1D is (in, out)
            peaked = any(part in name
                         for part in ("q_proj", "k_proj", "c_attn", "query_key_value"))
            value = (1.7 if peaked else gain) / math.sqrt(fan_in) * noise
        parameter.data.copy_(value.to(dtype))
    return model


def v4_config(config):
    """A config.json of transformers 5 in the words of transformers 4."""
    config = dict(config, torch_dtype=config["dtype"])
    del config["dtype"]
    if "rope_parameters" in config:
        rope = dict(config.pop("rope_parameters"))
        is_neox = config["model_type"] == "gpt_neox"
        config["rotary_emb_base" if is_neox else "rope_theta"] = rope.pop("rope_theta")
        if is_neox:
            config["rotary_pct"] = rope.pop("partial_rotary_factor")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    return config


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(folder, case, model):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.config.architectures = [case.architecture]
    model.config.dtype = case.dtype
    config = model.config.to_diff_dict()
    config.pop("transformers_version")
    write_json(folder / "config.json", v4_config(config) if case.v4_spelling else config)

    tied = config["tie_word_embeddings"]
    tensors = {name: parameter.detach().to(case.dtype).contiguous()
               for name, parameter in model.state_dict().items()
               if not (tied and name == "lm_head.weight")}
    write_tensors(folder, case.as_on_disk(tensors, model.config), case.shards)


def write_tensors(folder, tensors, shards):
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata)
        return
    # Dealt out in turn, so that every layer's tensors lie in several files.
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
                  for i, name in enumerate(tensors)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard},
                  folder / shard, metadata)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json",
               dict(metadata=dict(total_size=total), weight_map=weight_map))


def load(folder, dtype=torch.float32):
    """Loads a checkpoint and refuses one of which a tensor is left over or made up."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    buffers = (".attn.bias", ".attn.masked_bias")
    unexpected = [key for key in report["unexpected_keys"] if not key.endswith(buffers)]
    if report["missing_keys"] or report["mismatched_keys"] or unexpected:
        raise SystemExit(f"{folder}: transformers did not read it whole: {report}")
    for parameter in model.parameters():
        # Tensors mapped from a file lie at any address, and MKL sums in another order where they
        # are not aligned; copies are.
        parameter.data = parameter.data.clone()
    return model.eval()


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def greedy(model, prompt, count, end=()):
    """New ids, up to and with the first of `end`, and the margin of each decision."""
    ids, margins = list(prompt), []
    while len(ids) < len(prompt) + count and not (margins and ids[-1] in end):
        best = logits_of(model, ids)[-1].topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return ids[len(prompt):], margins


def tolerance_of(config, logits):
    eps = torch.finfo(torch.float32).eps
    scale = float(max(part.abs().max() for part in logits))
    return 4 * eps * math.sqrt(config.hidden_size) * (2 * config.num_hidden_layers + 1) * scale


def draw_prompt(model, length, end, generator):
    """A random prompt whose greedy continuation is decided clearly, is varied and does not end."""
    for _ in range(REDRAWS):
        prompt = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        tolerance = tolerance_of(model.config, [logits_of(model, prompt)])
        ids, margins = greedy(model, prompt, NEW_TOKENS)
        # 20 and not 10, because the fixture's one tolerance follows its largest logits.
        if min(margins) > 20 * tolerance and len(set(ids)) >= 5 and not set(end) & set(ids):
            return prompt, ids, min(margins)
    raise SystemExit(f"no prompt of {length} tokens with clear margins in {REDRAWS} draws")


@torch.no_grad()
def hidden_states_of(model, ids):
    output = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    *states, last = output.hidden_states
    if not torch.equal(model.lm_head(last[0]), output.logits[0]):
        raise SystemExit("the last hidden state is not what the head reads")
    # A model that projects what its head reads has nothing of the hidden size after the last norm.
    return torch.cat(states + [last] if last.shape == states[0].shape else states)


def make_case(case):
    folder = DATA / "golden" / case.name
    generator = torch.Generator().manual_seed(case.seed)
    end = case.config.eos_token_id
    end = end if isinstance(end, list) else [end]

    torch.manual_seed(case.seed)
    model = AutoModelForCausalLM.from_config(case.config, attn_implementation="eager",
                                             dtype=torch.float32)
    model = randomise(model, case.dtype, case.gain, generator).eval()
    drawn = [draw_prompt(model, length, end, generator) for length in case.lengths]
    prompts, continuations, margins = (list(part) for part in zip(*drawn))
    logits = [logits_of(model, prompt) for prompt in prompts]
    write_checkpoint(folder, case, model)

    # From here on only the files speak.
    reloaded = load(folder)
    for prompt, expected in zip(prompts, logits):
        if not torch.equal(logits_of(reloaded, prompt), expected):
            raise SystemExit(f"{case.name}: the files give other logits than the model written")
    double = load(folder, torch.float64)
    deviation = max(float((logits_of(double, prompt) - expected).abs().max())
                    for prompt, expected in zip(prompts, logits))
    tolerance = tolerance_of(model.config, logits)
    if deviation > tolerance or min(margins) < 10 * tolerance:
        raise SystemExit(f"{case.name}: tolerance {tolerance}, but float64 differs by {deviation} "
                         f"and the closest greedy decision is {min(margins)}")
    hidden_prompt = case.lengths.index(HIDDEN_LENGTH)
    tensors = {f"logits.{i}": part.contiguous() for i, part in enumerate(logits)}
    tensors["hidden"] = hidden_states_of(reloaded, prompts[hidden_prompt]).contiguous()
    save_file(tensors, folder / "golden.safetensors")
    (folder / "golden.json").write_text(golden_json(dict(
        prompts=prompts, greedy=continuations, margins=margins, hidden_prompt=hidden_prompt,
        tolerance=tolerance, float64_deviation=deviation, tolerance_note=TOLERANCE_NOTE)))
    for path in folder.iterdir():
        path.chmod(0o644)
    print(f"{case.name}: {folder_bytes(folder) / 1000:.0f} kB, tolerance {tolerance:.1e}, "
          f"float64 differs by {deviation:.1e}, smallest margin {min(margins):.1e}", flush=True)


def golden_json(golden):
    """One list of ids or floats a line: readable, and a change shows as the lines it touches."""
    parts = []
    for key, value in golden.items():
        if isinstance(value, list):
            rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in value)
            parts.append(f' {json.dumps(key)}: [\n{rows}\n ]')
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# The demo model.

DEMO_NEW_TOKENS = 40
DEMO_MARGIN = 1e-3
DEMO_GREEDY_WANTED = 5
DEMO_PROMPTS = (
    "In the beginning", "And the king said unto", "Blessed are they that", "And it came to pass",
    "The word of the LORD came", "Jesus answered and said", "O give thanks", "My son,",
    "And Moses", "Now these are the names", "Behold, I", "Thus saith the LORD")
DEMO_SCORED = (
    "The LORD is my shepherd; I shall not want.\n"
    "He maketh me to lie down in green pastures: he leadeth me beside the still waters.\n"
    "He restoreth my soul: he leadeth me in the paths of righteousness for his name's sake.\n"
    "Yea, though I walk through the valley of the shadow of death, I will fear no evil: for thou "
    "art with me; thy rod and thy staff they comfort me.\n")
TOKENIZER_TEXTS = (
    "", " ", "a", "In the beginning God created the heaven and the earth.",
    "  two  spaces,\ttabs\t\tand\n\nblank lines \n", "trailing spaces   ", "\r\n\r\nWindows\r\n",
    "don't won't we'll I'm they've he'd DON'T 'tis 's", "1611 and 3,141.59 and 0x1F and ١٢٣ and Ⅻ½",
    "naïve café — “quoted” … ¿qué? straße", "cafe\u0301 decomposed, café composed",
    "日本語のテキスト。中文，한국어", "Ἐν ἀρχῇ ἦν ὁ λόγος", "בְּרֵאשִׁית בָּרָא", "😀👩\u200d👩\u200d👧 flags 🇪🇺",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u0085next\u200bzero", "a\u0000b\u001fc\u007f",
    "<|endoftext|>", "The end.<|endoftext|>\nIn the", "<|endoftext|><|endoftext|> <|endoftext",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "unto-the_LORD's...!!!?? (selah)",
    "\U0010ffff\ue000\u0378", "ſharp ſ and 'ſ, DŽ ʰ ª")


def greedy_text(model, tokenizer, prompt):
    """What generate --greedy prints for `prompt`: no special tokens, stops at the end token."""
    prompt_ids = tokenizer.encode(prompt).ids
    ids, margins = greedy(model, prompt_ids, DEMO_NEW_TOKENS, [model.config.eos_token_id])
    text = tokenizer.decode(prompt_ids + ids)[len(tokenizer.decode(prompt_ids)):]
    stopped = ids[-1] == model.config.eos_token_id
    return dict(prompt=prompt, prompt_ids=prompt_ids, ids=ids, text=text,
                finish_reason="stop" if stopped else "length", margin=min(margins))


def scored_text(model, tokenizer, text):
    ids = tokenizer.encode(text).ids
    log_probabilities = logits_of(model, ids).double().log_softmax(-1)
    chosen = [float(log_probabilities[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    return dict(text=text, ids=ids, logprobs=[None] + chosen,
                perplexity=math.exp(-sum(chosen) / len(chosen)))


def make_demo():
    folder = DATA / "demo-gptj"
    model = load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tried = [greedy_text(model, tokenizer, prompt) for prompt in DEMO_PROMPTS]
    clear = [one for one in tried if one["margin"] > DEMO_MARGIN][:DEMO_GREEDY_WANTED]
    if len(clear) < DEMO_GREEDY_WANTED:
        raise SystemExit(f"only {len(clear)} demo prompts are decided by more than {DEMO_MARGIN}")
    encoded = [(text, tokenizer.encode(text).ids) for text in TOKENIZER_TEXTS]
    golden = dict(
        tokenizer=[dict(text=text, ids=ids, decoded=tokenizer.decode(ids),
                        decoded_with_special=tokenizer.decode(ids, skip_special_tokens=False))
                   for text, ids in encoded],
        greedy=clear, score=[scored_text(model, tokenizer, DEMO_SCORED)])
    (folder / "golden.json").write_text(golden_json(golden), encoding="utf-8")
    for one in clear:
        print(f"demo-gptj: margin {one['margin']:.1e}: {one['prompt']!r} → {one['text']!r}")
    print(f"demo-gptj: perplexity {golden['score'][0]['perplexity']:.3f} "
          f"of {len(golden['score'][0]['ids'])} tokens")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", help="one fixture, demo-gptj among them")
    only = parser.parse_args().only
    makers = {case.name: lambda case=case: make_case(case) for case in cases()}
    makers["demo-gptj"] = make_demo
    if only and only not in makers:
        parser.error(f"--only {only}: expected one of {', '.join(makers)}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, make in makers.items():
        if only in (None, name):
            make()
    size = folder_bytes(DATA / "golden")
    print(f"tests/data/golden: {size / 1e6:.2f} MB")
    if size >= GOLDEN_LIMIT_BYTES:
        raise SystemExit(f"the golden fixtures may not exceed {GOLDEN_LIMIT_BYTES / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
