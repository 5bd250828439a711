#!/usr/bin/env python3
"""Whole models in memory, in Stagecoach and llama.cpp: time to the first token of a prompt, and tokens a second after
it. All weights are random. llama.cpp gets the same model where it knows the architecture (SmolLM2 is a Llama); GPT-J is
stood in for by a Llama of its width, layers and heads whose gated MLP has as many weights, within 0.2 %."""

import datetime
import json
import pathlib
import sys

import gguf_random
from rival_engines import (ALL_TYPES, WEIGHT_BYTES, LlamaCpp, OtherPrograms, Stagecoach, choices, markdown_table, need_room, remove, rival_arguments,
                           threads_of, wait_for_quiet, write_whole)
from support import ROOT, BenchError, cpu_model, main, positive, table

PRESETS = ROOT / "configs/presets.json"


def parse():
    parser = rival_arguments(__doc__, time_limit=6 * 3600)
    parser.add_argument("--models", default="smollm2-135m,smollm2-360m,gpt-j-6b", help="presets of Llamas and GPT-Js, as a list")
    parser.add_argument("--weights", default="q8,q4", help="types to measure, as a list")
    parser.add_argument("--tokens", type=positive, default=512, help="of the prompt")
    parser.add_argument("--without-llama-cpp", action="store_true", help="measure Stagecoach alone")
    parser.add_argument("--without-stagecoach", action="store_true", help="measure llama.cpp alone")
    parser.add_argument("--quick", action="store_true", help="only the smallest model, 64 tokens")
    flags = parser.parse_args()
    if flags.quick:
        flags.models, flags.tokens = "smollm2-135m", 64
    if flags.without_llama_cpp and flags.without_stagecoach:
        parser.error("nothing to measure")
    presets = json.loads(PRESETS.read_text())
    try:
        flags.weights = choices(ALL_TYPES)(flags.weights)
        flags.models = [Model(name, presets) for name in flags.models.split(",")]
        for model in flags.models:
            if flags.tokens + 64 > model.llama["context"]:
                raise BenchError(f"--tokens {flags.tokens}: {model.name} has a context of {model.llama['context']}, and decode needs 64 of it", 2)
    except BenchError as error:
        parser.error(str(error))
    return flags


class Model:
    """A preset, and the Llama that llama.cpp runs for it."""

    def __init__(self, name, presets):
        if name not in presets:
            raise BenchError(f"'{name}' is no preset ({PRESETS.name})", 2)
        config, self.name = presets[name], name
        if config["model_type"] == "llama":
            self.note = "same shape"
            self.llama = {"width": config["hidden_size"], "heads": config["num_attention_heads"], "kv_heads": config["num_key_value_heads"],
                          "mlp": config["intermediate_size"], "layers": config["num_hidden_layers"], "vocabulary": config["vocab_size"],
                          "context": config["max_position_embeddings"], "tied": config["tie_word_embeddings"],
                          "rope_base": float(config["rope_theta"])}
        elif config["model_type"] == "gptj":
            # Two matrices of 4 widths against three of a gated MLP; a row has to be whole blocks of 32.
            width = config["n_embd"]
            mlp = round(2 * 4 * width / 3 / 32) * 32
            self.note = f"Llama of the same width, layers and heads, gated MLP of {mlp}"
            self.llama = {"width": width, "heads": config["n_head"], "kv_heads": config["n_head"], "mlp": mlp, "layers": config["n_layer"],
                          "vocabulary": config["vocab_size"], "context": config["n_positions"], "tied": False}
        else:
            raise BenchError(f"'{name}' is a {config['model_type']}; this compares Llamas and GPT-Js", 2)

    def weights(self):
        """Of all matrices of the Llama."""
        s = self.llama
        layer = s["width"]**2 * (2 + 2 * s["kv_heads"] / s["heads"]) + 3 * s["width"] * s["mlp"]
        return s["layers"] * layer + s["vocabulary"] * s["width"] * (1 if s["tied"] else 2)

    def weights_of_a_token(self):
        """Those that a decode step reads: of an embedding that is only looked up, nearly none."""
        return self.weights() - (0 if self.llama["tied"] else self.llama["vocabulary"] * self.llama["width"])


class Files:
    """A model in one type of weights, as a store and as a GGUF file."""

    def __init__(self, bench, stagecoach, model, weights):
        flags = bench.flags
        self.store, self.gguf = bench.work / f"{model.name}-{weights}", bench.work / f"{model.name}-{weights}.gguf"
        if not flags.keep:
            bench.undo.callback(self.remove)
        bench.say(f"writing {model.name} in {weights}, {model.weights() * WEIGHT_BYTES[weights] / 1e9:.2f} GB")
        if not flags.without_stagecoach and not (self.store / "manifest.json").exists():
            stagecoach.create(model.name, self.store, weights)
        if not flags.without_llama_cpp and not self.gguf.exists():
            write_whole(bench, self.gguf, lambda path: gguf_random.write_llama(path, weights, **model.llama))

    def remove(self):
        remove(self.store)
        remove(self.gguf)


class Comparison:
    def __init__(self, bench):
        self.bench, self.flags = bench, bench.flags
        self.stagecoach = Stagecoach(bench)
        self.check_room()
        self.llama = None if self.flags.without_llama_cpp else LlamaCpp(bench)
        self.rows = []

    def check_room(self):
        flags = self.flags
        sizes = [model.weights() * WEIGHT_BYTES[weights] for model in flags.models for weights in flags.weights]
        files = (not flags.without_stagecoach) + (not flags.without_llama_cpp)
        disk = files * (sum(sizes) if flags.keep else max(sizes))
        # GPT-J's embedding stays f16 in a store. llama.cpp rearranges quantised weights beside the file's pages.
        need_room(self.bench, 1.1 * disk + 2e9, 1.2 * max(sizes) + 2e9, "models of these sizes")

    def measure(self):
        limits = self.stagecoach.probe()
        for model in self.flags.models:
            for weights in self.flags.weights:
                self.measure_model(model, weights)
        return limits

    def measure_model(self, model, weights):
        files = Files(self.bench, self.stagecoach, model, weights)
        turns = [(self.llama.name, lambda phase: self.llama.passes(files.gguf, phase, self.flags.tokens))] if self.llama else []
        if not self.flags.without_stagecoach:
            own = (self.stagecoach.name, lambda phase: self.stagecoach.passes(files.store, phase, self.flags.tokens))
            turns = [own, *turns, own]
        for engine, run in turns:
            wait_for_quiet(self.bench)
            others = OtherPrograms()
            prefill, decode = run("prefill"), run("decode")
            others = others.share()
            self.bench.say(f"{model.name} in {weights}: {engine} {prefill.ms:.0f} ms to the first token, then {1e3 / decode.ms:.1f} tokens/s; "
                           f"other programs took {100 * others:.0f} % of the machine")
            self.rows.append({"model": model.name, "weights": weights, "engine": engine, "first_token_ms": prefill.ms,
                              "tokens_per_second": 1e3 / decode.ms, "prefill": prefill.figures(), "decode": decode.figures(), "other_programs": others,
                              "bytes_of_a_token": model.weights_of_a_token() * WEIGHT_BYTES[weights]})
        if not self.flags.keep:
            files.remove()


def add_ratios(rows, limits):
    for row in rows:
        row["share_of_memory"] = row["bytes_of_a_token"] * row["tokens_per_second"] / 1e9 / limits["memory_gb_per_s"]
        own = [r for r in rows if r["engine"] == Stagecoach.name and (r["model"], r["weights"]) == (row["model"], row["weights"])]
        rival = own and row["engine"] != Stagecoach.name
        row["prefill_speed"] = row["first_token_ms"] * len(own) / sum(r["first_token_ms"] for r in own) if rival else None
        row["decode_speed"] = sum(r["tokens_per_second"] for r in own) / len(own) / row["tokens_per_second"] if rival else None


def cells(row):
    return [row["model"], row["weights"], row["engine"], f"{row['first_token_ms']:.0f}", f"{row['tokens_per_second']:.2f}",
            f"{100 * row['share_of_memory']:.0f} %", *("-" if row[key] is None else f"{row[key]:.2f}" for key in ("prefill_speed", "decode_speed"))]


def measure(bench):
    comparison, flags = Comparison(bench), bench.flags
    limits = comparison.measure()
    add_ratios(comparison.rows, limits)
    notes = {model.name: model.note for model in flags.models}
    version = comparison.llama.version if comparison.llama else "without llama.cpp"
    said = (f"{cpu_model()}, {threads_of(flags)} threads, {datetime.date.today()}, {version}. A prompt of {flags.tokens} tokens, then tokens "
            f"one by one; medians of {flags.repeat} passes. Probed: memory {limits['memory_gb_per_s']:.1f} GB/s, f32 "
            f"{limits['f32_gflop_per_s']:.0f} GFLOP/s. In llama.cpp: {'; '.join(f'{name}: {note}' for name, note in notes.items())}. Other "
            f"programs took up to {100 * max(row['other_programs'] for row in comparison.rows):.0f} % of the machine.")
    headings = ["model", "weights", "engine", "first token, ms", "tokens/s", "of memory", "prefill x", "decode x"]
    rows = [cells(row) for row in comparison.rows]
    print(said)
    table(headings, rows)
    if flags.markdown:
        flags.markdown.write_text(f"{said}\n\n{markdown_table(headings, rows)}")
    return {"conditions": said, "tokens": flags.tokens, "threads": threads_of(flags), "activations": flags.activations, "probe": limits,
            "in_llama_cpp": notes, "rows": comparison.rows}


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
