#!/usr/bin/env python3
"""What one GPT-3 layer costs in Stagecoach, llama.cpp and PyTorch: prefill, decode of one row and of a batch, for each
type of weights, with the same shape, threads and machine. Engines take turns, Stagecoach before and after the others,
so that a machine that changes its pace shows. Figures are medians, with their share of what `stagecoach probe` finds in
the same run.

With --quick (a smaller layer, short texts) it takes minutes; in full, on two cores, hours."""

import datetime
import json
import pathlib
import sys

import gguf_random
from rival_engines import (ALL_TYPES, TORCH_TYPES, WEIGHT_BYTES, LlamaCpp, OtherPrograms, PyTorch, Stagecoach, choices, markdown_table,
                           need_room, remove, rival_arguments, threads_of, wait_for_quiet, write_whole)
from support import BenchError, cpu_model, main, positive, table

VOCABULARY = 256  # of bytes: head and embedding are 0.2 % of a layer's weights and less
RIVALS = ("llama.cpp", "pytorch")
PHASES = ("prefill", "decode", "batch")
HEAD = 128  # width of a head, as in GPT-3 175B
BUSY = 0.1  # share of the machine that other programs take, above which a figure is suspect
QUICK = {"hidden_size": 4096, "tokens": 128, "context": 32}
FULL = {"hidden_size": 12288, "tokens": 2048, "context": 128}


def parse():
    parser = rival_arguments(__doc__, time_limit=12 * 3600)
    parser.add_argument("--weights", default=",".join(ALL_TYPES), help="types to measure, as a list")
    parser.add_argument("--phases", default=",".join(PHASES), help="what to measure, as a list")
    parser.add_argument("--rivals", default=",".join(RIVALS), help="engines beside Stagecoach, as a list; none: Stagecoach alone")
    parser.add_argument("--without-stagecoach", action="store_true", help="measure the others only")
    parser.add_argument("--hidden-size", type=positive, help=f"width; default: {FULL['hidden_size']}, GPT-3's")
    parser.add_argument("--tokens", type=positive, help=f"of the prefill; default: {FULL['tokens']}")
    parser.add_argument("--context", type=positive, help=f"tokens before a decode step; default: {FULL['context']}")
    parser.add_argument("--batch", type=positive, default=8, help="rows of the batched decode step")
    parser.add_argument("--quick", action="store_true", help=f"other defaults: width {QUICK['hidden_size']}, {QUICK['tokens']} tokens, "
                                                             f"context {QUICK['context']}")
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has PyTorch, instead of installing it")
    flags = parser.parse_args()
    for key, default in (QUICK if flags.quick else FULL).items():
        setattr(flags, key, getattr(flags, key) or default)
    try:
        flags.weights, flags.phases = choices(ALL_TYPES)(flags.weights), choices(PHASES)(flags.phases)
        flags.rivals = [] if flags.rivals == "none" else choices(RIVALS)(flags.rivals)
    except BenchError as error:
        parser.error(str(error))
    if flags.hidden_size % HEAD:
        parser.error(f"--hidden-size: expected a multiple of {HEAD}, got {flags.hidden_size}")
    if flags.without_stagecoach and not flags.rivals:
        parser.error("nothing to measure")
    return flags


class Shape:
    """GPT-3's layer at a width."""

    def __init__(self, flags):
        self.width, self.heads, self.mlp = flags.hidden_size, flags.hidden_size // HEAD, 4 * flags.hidden_size
        self.positions = max(flags.tokens, flags.context + 64)
        self.weights = 12 * self.width**2  # of its matrices

    def config(self):
        return {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": self.positions,
                "n_embd": self.width, "n_layer": 1, "n_head": self.heads, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5,
                "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}

    def bytes(self, weights):
        return self.weights * WEIGHT_BYTES[weights]

    def flops(self, tokens, batch, prefill):
        """A multiply-add counts as two; attention looks back at half of a prompt on average, at all of a context."""
        rows = tokens * batch if prefill else batch
        seen = (tokens + 1) / 2 if prefill else tokens + 1
        return 2 * rows * self.weights + 4 * rows * seen * self.width


class Work:
    """One thing to measure."""

    def __init__(self, kind, flags):
        self.prefill = kind == "prefill"
        self.phase = "prefill" if self.prefill else "decode"
        self.batch = flags.batch if kind == "batch" else 1
        self.tokens = flags.tokens if self.prefill else flags.context
        self.name = f"prefill {self.tokens}" if self.prefill else f"decode {self.batch} row{'s' * (self.batch > 1)}"


class Layer:
    """The layer in one type of weights, as a store and as a GGUF file for as long as it is measured."""

    def __init__(self, bench, stagecoach, shape, weights, llama):
        self.shape, self.weights = shape, weights
        stem = f"gpt3-layer-{shape.width}-{shape.positions}-{weights}"
        self.store, self.gguf = bench.work / stem, bench.work / f"{stem}.gguf"
        if not bench.flags.keep:
            bench.undo.callback(remove, self.store)
            bench.undo.callback(remove, self.gguf)
        bench.say(f"writing a layer in {weights}, {shape.bytes(weights) / 1e9:.1f} GB")
        if not bench.flags.without_stagecoach and not (self.store / "manifest.json").exists():
            config = bench.reports / "config.json"
            config.write_text(json.dumps(shape.config()))
            stagecoach.create(config, self.store, weights)
        if llama and not self.gguf.exists():
            write_whole(bench, self.gguf, lambda path: gguf_random.write_gpt2(
                path, weights, width=shape.width, heads=shape.heads, mlp=shape.mlp, layers=1, vocabulary=VOCABULARY, context=shape.positions))

    def remove(self):
        remove(self.store)
        remove(self.gguf)


class Comparison:
    def __init__(self, bench):
        self.bench, self.flags = bench, bench.flags
        self.shape = Shape(self.flags)
        self.stagecoach = Stagecoach(bench)
        self.check_room()
        self.llama = LlamaCpp(bench) if "llama.cpp" in self.flags.rivals else None
        self.torch = PyTorch(bench, self.flags.python) if "pytorch" in self.flags.rivals else None
        self.works = [Work(kind, self.flags) for kind in self.flags.phases]
        self.rows, self.probes = [], []

    def check_room(self):
        files = (not self.flags.without_stagecoach) + ("llama.cpp" in self.flags.rivals)
        sizes = [self.shape.bytes(weights) for weights in self.flags.weights]
        disk = files * (sum(sizes) if self.flags.keep else max(sizes)) + 4 * files * self.shape.positions * self.shape.width
        # Twice a quantised layer: llama.cpp rearranges it beside the file's pages. Then activations, keys and values.
        rows = max(self.flags.tokens, self.flags.batch * self.flags.context)
        memory = 1.1 * max(size * (2 if weights in ("q8", "q4") else 1) for size, weights in zip(sizes, self.flags.weights))
        need_room(self.bench, 1.05 * disk + 2e9, memory + 40 * rows * self.shape.width + 1e9, "layers of this width and these types")

    def measure(self):
        self.probes.append(self.stagecoach.probe())
        for weights in self.flags.weights:
            layer = Layer(self.bench, self.stagecoach, self.shape, weights, self.llama)
            for work in self.works:
                self.measure_work(layer, work)
            if not self.flags.keep:
                layer.remove()
        self.probes.append(self.stagecoach.probe())

    def limits(self):
        """A probe can be held up, but cannot find too much."""
        return {key: max(probe[key] for probe in self.probes) if isinstance(value, float) else value for key, value in self.probes[0].items()}

    def measure_work(self, layer, work):
        arguments = (work.phase, work.tokens, work.batch)
        turns = []
        if self.llama:
            turns.append((self.llama.name, lambda: self.llama.passes(layer.gguf, *arguments, all_rows=work.prefill)))
        if self.torch and layer.weights in TORCH_TYPES:
            turns.append((self.torch.name, lambda: self.torch.layer_passes(self.shape, layer.weights, *arguments)))
        if not self.flags.without_stagecoach:
            own = (self.stagecoach.name, lambda: self.stagecoach.passes(layer.store, *arguments))
            turns = [own, *turns, own]
        for engine, run in turns:
            wait_for_quiet(self.bench)
            others = OtherPrograms()
            passes = run()
            others = others.share()
            self.bench.say(f"{layer.weights}, {work.name}: {engine} {passes.ms:.1f} ms; other programs took {percent(others)} of the machine")
            self.rows.append({"weights": layer.weights, "work": work.name, "phase": work.phase, "tokens": work.tokens, "batch": work.batch,
                              "engine": engine, **passes.figures(), "other_programs": others})


def add_rates(rows, shape, limits):
    """Operations a second for all work, bytes a second where weights are read once a row or a few. The type's own limit
    is that of the arithmetic that it allows, whether or not an engine uses it."""
    own = {"f32": "f32_gflop_per_s", "f16": "f32_gflop_per_s", "bf16": "bf16_gflop_per_s", "q8": "int8_gop_per_s", "q4": "int8_gop_per_s"}
    for row in rows:
        prefill = row["phase"] == "prefill"
        row["gflop_per_s"] = shape.flops(row["tokens"], row["batch"], prefill) / row["ms"] / 1e6
        row["gb_per_s"] = None if prefill else shape.bytes(row["weights"]) / row["ms"] / 1e6
        row["share_of_memory"] = None if prefill else row["gb_per_s"] / limits["memory_gb_per_s"]
        row["share_of_f32"] = row["gflop_per_s"] / limits["f32_gflop_per_s"]
        row["share_of_type"] = row["gflop_per_s"] / limits[own[row["weights"]]]


def add_ratios(rows):
    """How many times as fast as each rival Stagecoach is: over the mean of its two turns."""
    for row in rows:
        own = [r["ms"] for r in rows if r["engine"] == Stagecoach.name and (r["weights"], r["work"]) == (row["weights"], row["work"])]
        row["stagecoach_speed"] = row["ms"] * len(own) / sum(own) if own and row["engine"] != Stagecoach.name else None


def percent(share):
    return "-" if share is None else f"{100 * share:.0f} %"


def number(value):
    return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def marked(row):
    """Milliseconds, with a star where another program may have held the engine up."""
    return number(row["ms"]) + ("\\*" if row["other_programs"] > BUSY else "")


def print_rows(rows):
    table(["weights", "work", "engine", "ms", "quartiles", "GFLOP/s", "GB/s", "of memory", "of f32", "of type", "Stagecoach is x", "others"],
          [[r["weights"], r["work"], r["engine"], number(r["ms"]), f"{number(r['ms_q1'])}-{number(r['ms_q3'])}", number(r["gflop_per_s"]),
            number(r["gb_per_s"]), percent(r["share_of_memory"]), percent(r["share_of_f32"]), percent(r["share_of_type"]),
            "-" if r["stagecoach_speed"] is None else f"{r['stagecoach_speed']:.2f}", percent(r["other_programs"])] for r in rows])


def markdown(figures):
    """For docs/performance.md: a row for each type and work, with all engines side by side."""
    rows, engines = figures["rows"], [n for n in ("llama.cpp", "PyTorch") if any(r["engine"] == n for r in figures["rows"])]
    lines = []
    for key in dict.fromkeys((r["weights"], r["work"]) for r in rows):
        here = [r for r in rows if (r["weights"], r["work"]) == key]
        own = [r for r in here if r["engine"] == Stagecoach.name]
        line = [*key]
        if own:
            shares = [max(r["share_of_memory"] or 0, r["share_of_type"]) for r in own]
            line += [", ".join(map(marked, own)), percent(sum(shares) / len(shares))]
        for name in engines:
            rival = next((r for r in here if r["engine"] == name), None)
            line.append("-" if rival is None else marked(rival))
            if rival is not None:
                line.append(percent(max(rival["share_of_memory"] or 0, rival["share_of_type"])))
            else:
                line.append("-")
            if own:
                line.append("-" if rival is None else f"{rival['stagecoach_speed']:.2f}")
        lines.append(line)
    headings = ["weights", "work"]
    if any(r["engine"] == Stagecoach.name for r in rows):
        headings += ["Stagecoach, ms", "of limit"]
        for name in engines:
            headings += [f"{name}, ms", "of limit", "Stagecoach is ×"]
    else:
        for name in engines:
            headings += [f"{name}, ms", "of limit"]
    note = f"\n\\* Other programs took more than {percent(BUSY)} of the machine.\n" if any(r["other_programs"] > BUSY for r in rows) else ""
    return f"{figures['conditions']}\n\n{markdown_table(headings, lines)}{note}"


def conditions(comparison, limits):
    flags, shape = comparison.flags, comparison.shape
    versions = [r.version for r in (comparison.llama, comparison.torch) if r]
    isa = f" ({comparison.stagecoach.isa})" if comparison.stagecoach.isa else ""
    return (f"{cpu_model()}, {threads_of(flags)} threads{isa}, {datetime.date.today()}. One layer: width {shape.width}, {shape.heads} heads, MLP "
            f"{shape.mlp}; decode after a context of {flags.context} tokens; medians of {flags.repeat} passes. Probed: memory "
            f"{limits['memory_gb_per_s']:.1f} GB/s, f32 {limits['f32_gflop_per_s']:.0f} GFLOP/s, bf16 {limits['bf16_gflop_per_s']:.0f} GFLOP/s "
            f"({limits['bf16_instructions']}), int8 {limits['int8_gop_per_s']:.0f} GOP/s ({limits['int8_instructions']}). "
            f"{'; '.join(versions) or 'No rivals'}. Other programs took up to {percent(max(r['other_programs'] for r in comparison.rows))} of the "
            "machine.")


def report(comparison):
    flags, limits = comparison.flags, comparison.limits()
    add_rates(comparison.rows, comparison.shape, limits)
    add_ratios(comparison.rows)
    figures = {"conditions": conditions(comparison, limits), "width": comparison.shape.width, "threads": threads_of(flags),
               "activations": flags.activations, "rivals": [r.version for r in (comparison.llama, comparison.torch) if r],
               "probes": comparison.probes, "rows": comparison.rows}
    print(figures["conditions"])
    print_rows(comparison.rows)
    if flags.markdown:
        flags.markdown.write_text(markdown(figures))
    return figures


def measure(bench):
    comparison = Comparison(bench)
    try:
        comparison.measure()
    except BenchError:
        if comparison.rows:  # may be hours of measuring
            report(comparison)
        raise
    return report(comparison)


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
