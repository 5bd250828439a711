#!/usr/bin/env python3
"""Writes tests/data/pytorch: one tiny model in every form in which PyTorch saves it.

    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-golden.txt
    .venv/bin/python scripts/make_pytorch_golden.py

FAMILY/config.json and FAMILY/model.safetensors are the reference; every FAMILY/VARIANT.bin, and the
shards of FAMILY/sharded/, must import to the same store. two.bin is the smallest archive that holds
tensors and two-stream.bin the smallest old stream: tests break them byte by byte.
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests/data/pytorch"
LIMIT_BYTES = 150_000

GPT2 = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=11, n_positions=6,
            n_embd=4, n_layer=2, n_head=2, bos_token_id=10, eos_token_id=10)
GPTJ = dict(architectures=["GPTJForCausalLM"], model_type="gptj", vocab_size=11, n_positions=6,
            n_embd=8, n_layer=1, n_head=2, rotary_dim=2, tie_word_embeddings=False,
            bos_token_id=10, eos_token_id=10)


def draw(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Standard normal values, by name."""
    generator = torch.Generator().manual_seed(len(shapes))
    return {name: torch.randn(shape, generator=generator).to(dtype)
            for name, shape in shapes.items()}


def gpt2_tensors() -> dict[str, torch.Tensor]:
    d = GPT2["n_embd"]
    shapes = {"wte.weight": (GPT2["vocab_size"], d), "wpe.weight": (GPT2["n_positions"], d)}
    for n in range(GPT2["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{n}.{norm}.weight": (d,), f"h.{n}.{norm}.bias": (d,)}
        for name, rows, cols in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d),
                                 ("mlp.c_fc", d, 4 * d), ("mlp.c_proj", 4 * d, d)):
            shapes |= {f"h.{n}.{name}.weight": (rows, cols), f"h.{n}.{name}.bias": (cols,)}
    return draw(shapes | {"ln_f.weight": (d,), "ln_f.bias": (d,)}, torch.float32)


def gptj_tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    d, vocabulary = GPTJ["n_embd"], GPTJ["vocab_size"]
    shapes = {"transformer.wte.weight": (vocabulary, d), "lm_head.weight": (vocabulary, d),
              "lm_head.bias": (vocabulary,)}
    for norm in ("h.0.ln_1", "ln_f"):
        shapes |= {f"transformer.{norm}.weight": (d,), f"transformer.{norm}.bias": (d,)}
    for name in ("q", "k", "v", "out"):
        shapes[f"transformer.h.0.attn.{name}_proj.weight"] = (d, d)
    for name, rows, cols in (("fc_in", 4 * d, d), ("fc_out", d, 4 * d)):
        shapes |= {f"transformer.h.0.mlp.{name}.weight": (rows, cols),
                   f"transformer.h.0.mlp.{name}.bias": (rows,)}
    return draw(shapes, dtype)


def strided(tensor: torch.Tensor) -> torch.Tensor:
    """The same values out of order: a transposed matrix, every second element of a vector."""
    if tensor.dim() == 2:
        return tensor.t().contiguous().t()
    return torch.stack([tensor, -tensor], dim=1).flatten()[::2]


def in_one_storage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of one flat buffer, as FSDP and DeepSpeed leave them."""
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    views, begin = {}, 0
    for name, tensor in tensors.items():
        views[name] = flat[begin:begin + tensor.numel()].view(tensor.shape)
        begin += tensor.numel()
    return views


def module_of(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Modules named so: their state_dict is an OrderedDict with metadata."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        module = root
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_parameter(last, torch.nn.Parameter(tensor))
    return root


def save(value: object, path: pathlib.Path) -> None:
    torch.save(value, path)


def save_stream(value: object, path: pathlib.Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def write_gpt2(folder: pathlib.Path) -> None:
    folder.mkdir()
    tensors = gpt2_tensors()
    (folder / "config.json").write_text(json.dumps(GPT2, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    module = module_of(tensors)
    save(module.state_dict(), folder / "state-dict.bin")
    save_stream(module.state_dict(), folder / "stream.bin")
    save(dict(module.named_parameters()), folder / "parameters.bin")
    save({name: strided(tensor) for name, tensor in tensors.items()}, folder / "strided.bin")
    save_stream({name: strided(tensor) for name, tensor in tensors.items()},
                folder / "strided-stream.bin")
    save(in_one_storage(tensors), folder / "one-storage.bin")
    prefixed = {"transformer." + name: tensor for name, tensor in tensors.items()}
    save(prefixed | {"lm_head.weight": prefixed["transformer.wte.weight"]}, folder / "tied.bin")
    training = {f"module._orig_mod.{name}": tensor for name, tensor in prefixed.items()}
    save({"model": training, "iter_num": 7, "best_val_loss": torch.tensor(1.5),
          "model_args": {"n_layer": 2, "bias": True, "dropout": 0.0, "name": None},
          "optimizer": {"state": {0: {"step": torch.tensor(7.0)}},
                        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0]}]}},
         folder / "training.bin")

    shards = folder / "sharded"
    shards.mkdir()
    names = list(prefixed)
    weight_map = {}
    for number, some in enumerate((names[:len(names) // 2], names[len(names) // 2:]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        write = save if number == 1 else save_stream
        write({name: prefixed[name] for name in some}, shards / file)
        weight_map |= dict.fromkeys(some, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
             "weight_map": weight_map}
    (shards / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")


def write_gptj(folder: pathlib.Path, dtype: torch.dtype) -> None:
    folder.mkdir()
    tensors = gptj_tensors(dtype)
    (folder / "config.json").write_text(json.dumps(GPTJ, indent=1) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    # transformers before 4.26 saved the causal mask, in one of these types.
    positions = GPTJ["n_positions"]
    mask = torch.ones(positions, positions).tril().view(1, 1, positions, positions)
    buffers = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e9)}
    for name, kind, write in (("archive", torch.uint8, save), ("stream", torch.bool, save_stream)):
        write(tensors | buffers | {"transformer.h.0.attn.bias": mask.to(kind)},
              folder / f"{name}.bin")


def main() -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    write_gpt2(DATA / "gpt2")
    write_gptj(DATA / "gptj-f16", torch.float16)
    write_gptj(DATA / "gptj-bf16", torch.bfloat16)
    two = {"a": torch.arange(3.0), "b": torch.tensor([[1, 2], [3, 4]]).t()}
    save(two, DATA / "two.bin")
    save_stream(two, DATA / "two-stream.bin")
    size = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file())
    assert size <= LIMIT_BYTES, f"{size} bytes of fixtures, expected at most {LIMIT_BYTES}"
    print(f"{size} bytes in {DATA}")


if __name__ == "__main__":
    main()
