#!/usr/bin/env python3
"""What can be said of the CUDA kernels without a card, as Markdown: registers and shared memory by ptxas and the occupancy
that follows; bytes and operations of launches at the widths of GPT-J and GPT-3, and the time below which no card of a data
sheet can do them: max(bytes / bandwidth, operations / peak). Computed, not measured. Needs nvcc and c++filt; compiles all
kernels once for each architecture (some minutes), or takes what an earlier run left in --resources FILE."""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

from cuda_work import CARDS, MODELS, launches

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"): warps, blocks, bytes of
# shared memory, of which each block also costs `reserved`. Registers: 65,536, given to warps in units of 256, four at a time.
ARCHITECTURES = {
    "75": {"warps": 32, "blocks": 16, "shared": 64 * 1024, "reserved": 0},
    "86": {"warps": 48, "blocks": 16, "shared": 100 * 1024, "reserved": 1024},
    "89": {"warps": 48, "blocks": 24, "shared": 100 * 1024, "reserved": 1024},
    "120": {"warps": 48, "blocks": 24, "shared": 100 * 1024, "reserved": 1024},
}

# Kernels of the table: (name, function without namespaces, threads, bytes of shared memory). The last two are what the sources
# launch: BlockSums in few_rows.cu, PrefillShared, TensorShared and DecodeShared in attention_*.cu.
FEW_ROWS = [("f32 · f32", r"PlainWeight<float>", r"PlainInput<float>"), ("f16 · f16", r"PlainWeight<__half>", r"PlainInput<__half>"),
            ("bf16 · bf16", r"PlainWeight<__nv_bfloat16>", r"PlainInput<__nv_bfloat16>"), ("q8 · f32", "Q8Weight", "PlainInput<float>"),
            ("q8 · int8", "Q8Weight", "QuantInput"), ("q4 · f32", "Q4Weight", "PlainInput<float>"), ("q4 · int8", "Q4Weight", "QuantInput")]


def kernels():
    rows = []
    for name, weight, x in FEW_ROWS:
        for count in (1, 8):
            rows.append((f"few_rows {name}, {count} row{'s'[:count > 1]}", rf"few_rows_kernel<{weight}, {count}, {x}>", 256, 8 * count * 16 * 4))
    rows.append(("attention_prefill f32, heads of 128", "prefill_kernel<128>", 128, 4 * (32 * 128 + 32 * 64 + 16 * 64)))
    for kv, element in (("f16", "__half"), ("q8", "Q8Kv")):
        for dims in (64, 128, 256):
            keys, queries = (64, 16) if dims <= 128 else (32, 64 * dims * 2)
            rows.append((f"attention_prefill {kv}, heads of {dims}", rf"prefill_tensor_kernel<{element}, {dims}>", 128, 2 * keys * dims * 2 + queries))
        for dims in (128, 256):
            rows.append((f"attention_decode {kv}, heads of {dims}", rf"decode_kernel<{element}, {dims}, 1>", 128, 4 * (dims + 4 * 64 + 4 * (dims + 2))))
    rows += [("attention_merge", "merge_kernel", 64, 0), ("append_kv f16", "append_kernel<__half, false>", 128, 0), ("append_kv q8", "append_kernel<Q8, false>", 128, 0),
             ("rotate_and_append f16", "append_kernel<__half, true>", 128, 0), ("rotate_and_append q8", "append_kernel<Q8, true>", 128, 0),
             ("unpack f16 to f16", "unpack_plain<__half, __half>", 256, 0), ("unpack q8 to f16", "unpack_groups<true, __half>", 256, 0),
             ("unpack q4 to f16", "unpack_groups<false, __half>", 256, 0), ("norm", "norm_kernel<8, NotPacked>", 256, 32),
             ("norm_and_pack f16", "norm_kernel<8, PackPlain<__half>>", 256, 32), ("norm_and_pack int8", "norm_kernel<8, PackGroups>", 256, 32),
             ("activation", "activation_kernel", 256, 0), ("activation_and_pack f16", "activation_pack_kernel<PackPlain<__half>>", 256, 0),
             ("activation_and_pack int8", "activation_pack_kernel<PackGroups>", 256, 0),
             ("rotary", "rotary_kernel", 256, 0), ("pack_input f16", "pack_kernel<PackPlain<__half>>", 256, 0), ("pack_input int8", "pack_kernel<PackGroups>", 256, 0),
             ("gather_rows", "gather_kernel", 256, 0)]
    return rows


def plain_name(demangled):
    """few_rows_kernel<Q8Weight, 1, QuantInput> of a demangled signature."""
    name = re.sub(r"\((anonymous namespace|int|bool)\)|_GLOBAL__N__\w+|stagecoach::cuda|::|^void ", "", demangled).replace("> >", ">>")
    depth = 0
    for i, c in enumerate(name):  # up to the parenthesis of the parameters
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def compiled(nvcc, architecture):
    """{kernel: {"registers", "spills"}} of all sources, by ptxas."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for source in sorted((ROOT / "kernels/cuda").glob("*.cu")):
            print(f"{source.name} for sm_{architecture}", file=sys.stderr)
            result = subprocess.run([nvcc, "-cubin", f"-arch=sm_{architecture}", "-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v",
                                     f"-I{ROOT}", "-o", f"{folder}/out.cubin", source], capture_output=True, text=True)
            if result.returncode != 0:
                raise SystemExit(f"cuda_table: {source.name} does not compile:\n{result.stderr}")
            text = subprocess.run(["c++filt"], input=result.stderr, capture_output=True, text=True, check=True).stdout
            for name, body in re.findall(r"Compiling entry function '(.*?)' for.*?\n(.*?)(?=ptxas info\s+: Compiling entry|\Z)", text, re.S):
                spills = re.search(r"(\d+) bytes spill stores", body)
                found[plain_name(name)] = {"registers": int(re.search(r"Used (\d+) registers", body)[1]), "spills": int(spills[1]) if spills else 0}
    return found


def occupancy(architecture, registers, threads, shared):
    """Share of a multiprocessor's warps that blocks of one kernel fill."""
    limits = ARCHITECTURES[architecture]
    warps = threads // 32
    per_warp = (registers * 32 + 255) // 256 * 256
    by_registers = 65536 // per_warp // 4 * 4 // warps
    by_shared = limits["shared"] // (shared + limits["reserved"]) if shared + limits["reserved"] else limits["blocks"]
    blocks = min(limits["blocks"], limits["warps"] // warps, by_registers, by_shared)
    return blocks * warps / limits["warps"]


def resource_table(resources):
    names = list(ARCHITECTURES)
    lines = ["| kernel | threads | shared bytes | registers: " + " | ".join(f"sm_{a}" for a in names) + " | occupancy: "
             + " | ".join(f"sm_{a}" for a in names) + " |", "| --- |" + " ---: |" * (2 + 2 * len(names))]
    for name, function, threads, shared in kernels():
        registers, shares = [], []
        for a in names:
            used = resources[a].get(function)
            if used is None:
                raise SystemExit(f"cuda_table: no kernel '{function}' among: {', '.join(sorted(resources[a]))}")
            registers.append(f"{used['registers']}" + (f" + {used['spills']} B spilled" if used["spills"] else ""))
            shares.append(f"{100 * occupancy(a, used['registers'], threads, shared):.0f} %")
        lines.append(f"| {name} | {threads} | {shared:,} | " + " | ".join(registers + shares) + " |")
    return lines


def scaled(value):
    """Three digits with a unit of thousands."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g} {unit}".strip()
        value /= 1000
    return f"{value:.3g} P"


def time_table(model):
    lines = ["| launch | bytes | operations | " + " | ".join(card["name"] for card in CARDS) + " |", "| --- |" + " ---: |" * (2 + len(CARDS))]
    for launch in launches(model):
        times = []
        for card in CARDS:
            seconds = launch.seconds(card)
            if seconds is None:
                times.append("-")
                continue
            bound = "" if launch.memory_bound(card) else " *"
            times.append((f"{seconds * 1e6:.3g} µs" if seconds < 1e-3 else f"{seconds * 1e3:.3g} ms") + bound)
        lines.append(f"| {launch.name} | {scaled(launch.bytes)}B | {scaled(launch.operations)} | " + " | ".join(times) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--resources", type=pathlib.Path, help="JSON of what ptxas said: read if it is there, else written")
    flags = parser.parse_args()
    if flags.resources and flags.resources.exists():
        resources = json.loads(flags.resources.read_text())
    else:
        resources = {a: compiled(flags.nvcc, a) for a in ARCHITECTURES}
        if flags.resources:
            flags.resources.write_text(json.dumps(resources, indent=1) + "\n")
    out = ["### Registers and occupancy", ""] + resource_table(resources)
    for model in MODELS:
        out += ["", f"### {model['title']}", ""] + time_table(model)
    print("\n".join(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
