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
# `code`: what of the build such a card runs (CMakeLists.txt).
CAPABILITIES = {
    "7.5": {"code": "75", "warps": 32, "blocks": 16, "shared": 64 * 1024, "reserved": 0},
    "8.6": {"code": "80", "warps": 48, "blocks": 16, "shared": 100 * 1024, "reserved": 1024},
    "8.9": {"code": "80", "warps": 48, "blocks": 24, "shared": 100 * 1024, "reserved": 1024},
    "12.0": {"code": "120", "warps": 48, "blocks": 24, "shared": 100 * 1024, "reserved": 1024},
}
CODES = sorted({limits["code"] for limits in CAPABILITIES.values()}, key=int)

# C++ types of the kernels' parameters.
ELEMENTS = {"f32": "float", "f16": "__half", "bf16": "__nv_bfloat16"}
PACKINGS = {"f32": "PackRounded", "f16": "PackPlain<__half>", "bf16": "PackPlain<__nv_bfloat16>", "int8": "PackGroups"}
FEW_ROWS = [("f32", "f32"), ("f16", "f32"), ("f16", "f16"), ("bf16", "f32"), ("bf16", "bf16")] + [
    (weights, inputs) for weights in ("q8", "q4") for inputs in ("f32", "f16", "bf16", "int8")]


def kernels():
    """Every kernel: (name, function without namespaces, threads, bytes of shared memory). The last two are what the sources
    launch: BlockSums in few_rows.cu, PrefillShared, TensorShared and DecodeShared in attention_*.cu."""
    rows = []
    for weights, inputs in FEW_ROWS:
        weight = f"PlainWeight<{ELEMENTS[weights]}>" if weights in ELEMENTS else f"{weights.upper()}Weight"
        x = f"PlainInput<{ELEMENTS[inputs]}>" if inputs in ELEMENTS else "QuantInput"
        for count in (1, 2, 4, 8):
            rows.append((f"few_rows {weights} · {inputs}, {count} row{'s'[:count > 1]}", f"few_rows_kernel<{weight}, {count}, {x}>", 256,
                         8 * count * 16 * 4))
    for dims in (64, 128, 256):
        rows.append((f"attention_prefill f32, heads of {dims}", f"prefill_kernel<{dims}>", 128, 4 * (32 * dims + 32 * 64 + max(16 * 64, 8 * dims))))
    for kv, element in (("f16", "__half"), ("q8", "Q8Kv")):
        for dims in (64, 128, 256):
            keys, queries = (64, 0) if dims <= 128 else (32, 64 * dims * 2)
            rows.append((f"attention_prefill {kv}, heads of {dims}", f"prefill_tensor_kernel<{element}, {dims}>", 128, 2 * keys * dims * 2 + queries))
    for kv, element in (("f32", "float"), ("f16", "__half"), ("q8", "Q8Kv")):
        for dims in (64, 128, 256):
            for tile in (1, 4):
                rows.append((f"attention_decode {kv}, heads of {dims}" + (", grouped" if tile > 1 else ""), f"decode_kernel<{element}, {dims}, {tile}>",
                             128, 4 * tile * (dims + 4 * 64 + 4 * (dims + 2))))
    rows.append(("attention_merge", "merge_kernel", 64, 0))
    for name, rotates in (("append_kv", "false"), ("rotate_and_append", "true")):
        rows += [(f"{name} {kv}", f"append_kernel<{element}, {rotates}>", 128, 0) for kv, element in (("f32", "float"), ("f16", "__half"), ("q8", "Q8"))]
    rows += [(f"unpack {a} to {b}", f"unpack_plain<{ELEMENTS[a]}, {ELEMENTS[b]}>", 256, 0)
             for a, b in (("f32", "f32"), ("f16", "f32"), ("f16", "f16"), ("bf16", "f32"), ("bf16", "bf16"))]
    rows += [(f"unpack {a} to {b}", f"unpack_groups<{is_q8}, {ELEMENTS[b]}>", 256, 0) for a, is_q8 in (("q8", "true"), ("q4", "false")) for b in ("f32", "f16")]
    for name, warps, shared in (("norm", 8, 32), ("norm, short rows", 1, 0)):
        rows.append((name, f"norm_kernel<{warps}, NotPacked>", 256, shared))
        rows += [(name.replace("norm", f"norm_and_pack {inputs}"), f"norm_kernel<{warps}, {packing}>", 256, shared) for inputs, packing in PACKINGS.items()]
    rows.append(("activation", "activation_kernel", 256, 0))
    rows += [(f"activation_and_pack {inputs}", f"activation_pack_kernel<{packing}>", 256, 0) for inputs, packing in PACKINGS.items()]
    rows += [(f"pack_input {inputs}", f"pack_kernel<{packing}>", 256, 0) for inputs, packing in PACKINGS.items()]
    rows += [(name, function, 256, 0) for name, function in (("unpack_input", "unpack_groups"), ("bias", "bias_kernel"), ("rotary", "rotary_kernel"),
                                                             ("gather_rows", "gather_kernel"), ("fetch", "fetch_kernel<uint4>"),
                                                             ("fetch, odd addresses", "fetch_kernel<stdbyte>"), ("read_memory", "read_kernel"))]
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


def occupancy(capability, registers, threads, shared):
    """Share of a multiprocessor's warps that blocks of one kernel fill."""
    limits = CAPABILITIES[capability]
    warps = threads // 32
    per_warp = (registers * 32 + 255) // 256 * 256
    by_registers = 65536 // per_warp // 4 * 4 // warps
    by_shared = limits["shared"] // (shared + limits["reserved"]) if shared + limits["reserved"] else limits["blocks"]
    blocks = min(limits["blocks"], limits["warps"] // warps, by_registers, by_shared)
    return blocks * warps / limits["warps"]


def check_complete(resources):
    """Exits unless the table has a line for each kernel that was compiled, and no other."""
    listed = {function for _, function, _, _ in kernels()}
    for code, found in resources.items():
        for problem, names in (("have no line", found.keys() - listed), ("are not there", listed - found.keys())):
            if names:
                raise SystemExit(f"cuda_table: kernels of sm_{code} that {problem}: {', '.join(sorted(names))}")


def resource_table(resources):
    lines = ["| kernel | threads | shared bytes | registers: " + " | ".join(f"sm_{code}" for code in CODES) + " | occupancy: "
             + " | ".join(CAPABILITIES) + " |", "| --- |" + " ---: |" * (2 + len(CODES) + len(CAPABILITIES))]
    for name, function, threads, shared in kernels():
        registers = []
        for code in CODES:
            used = resources[code][function]
            registers.append(f"{used['registers']}" + (f" + {used['spills']} B spilled" if used["spills"] else ""))
        shares = [f"{100 * occupancy(capability, resources[limits['code']][function]['registers'], threads, shared):.0f} %" for capability, limits in CAPABILITIES.items()]
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
        resources = {code: compiled(flags.nvcc, code) for code in CODES}
        if flags.resources:
            flags.resources.write_text(json.dumps(resources, indent=1) + "\n")
    check_complete(resources)
    out = ["### Registers and occupancy", ""] + resource_table(resources)
    for model in MODELS:
        out += ["", f"### {model['title']}", ""] + time_table(model)
    print("\n".join(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
