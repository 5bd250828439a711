#!/usr/bin/env python3
"""Turns what cuda_card.sh left in a folder (steps.tsv, cuda_bench.jsonl, probe.json, time.*.jsonl) into summary.txt and
summary.json, and prints the former. A step that left nothing, or half a line, is shown as far as it got."""

import json
import pathlib
import statistics
import sys


def json_lines(path):
    """The objects of a file of lines; a last line that was cut off is left out."""
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return objects


def rates_of(folder):
    """The card's rates as `probe` found them, where cuda_bench has not run in this call; {} without either."""
    for probed in json_lines(folder / "probe.json"):
        for gpu in probed.get("gpus") or ():
            return {"read_gb_per_s": gpu["device_gb_per_s"], "to_device_gb_per_s": gpu["bus_gb_per_s"], "bf16_gflop_per_s": gpu["device_bf16_gflop_per_s"]}
    return {}


def steps_of(path):
    fields = ("step", "result", "seconds", "said")
    return [dict(zip(fields, line.split("\t"))) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def timings_of(objects):
    """A row for each run and phase: the pass, and the middle layer of it."""
    rows = []
    for run in dict.fromkeys(o["run"] for o in objects):
        mine = [o for o in objects if o["run"] == run]
        for summary in (o for o in mine if o.get("summary")):
            layers = [o for o in mine if not o.get("summary") and o.get("phase") == summary["phase"]]

            def middle(column):
                values = [o[column] for o in layers if o.get(column) is not None]
                return statistics.median(values) if values else None

            rows.append({"run": run, "phase": summary["phase"], "ms": summary["ms"], "tokens_per_second": summary["tokens_per_second"],
                         "layers": len(layers), "layer_ms": middle("ms"), "layer_compute_ms": middle("compute_ms"),
                         "layer_gb_per_s": middle("gb_per_s"), "layer_gflop_per_s": middle("gflop_per_s"),
                         "ranks": summary.get("ranks_detail") or [], "critical_path": summary.get("critical_path")})
    return rows


def goals_of(times, card):
    """What the project wants of a card: (goal, wanted, reached or None, whether met or None). Shares are of what the card itself was
    measured to do, in the same run or by `probe`."""
    def found(run, phase):
        return next((row for row in times if row["run"].startswith(run) and row["phase"] == phase), None)

    def ratio(part, whole):
        return part / whole if part is not None and whole else None

    goals = []

    def goal(text, wanted, reached, at_most=False):
        met = None if reached is None else (reached <= wanted if at_most else reached >= wanted)
        goals.append({"goal": text, "wanted": ("at most " if at_most else "at least ") + f"{wanted:.2f}", "reached": reached, "met": met})

    layer = found("GPT-3 bf16, 1 layer, --device-memory 24GB", "prefill")
    goal("GPT-3 layer, 2,048 tokens, bf16: time over that of its operations in cuBLAS", 1.2,
         layer and ratio(card.get("bf16_gflop_per_s"), layer["layer_gflop_per_s"]), at_most=True)
    for run, weights in (("GPT-3 bf16, 1 layer, --device-memory 24GB", "bf16"), ("GPT-J q8, 8 layers", "q8"), ("GPT-J q4, 8 layers", "q4")):
        row = found(run, "decode")
        goal(f"decode, one row, {weights}: share of the card's memory bandwidth", 0.85,
             row and ratio(row["layer_gb_per_s"], card.get("read_gb_per_s")))
    streamed = found("GPT-3 bf16, 3 layers", "decode")
    buses = [rank for rank in (streamed["ranks"] if streamed else []) if rank.get("bus_gb_per_s")]
    goal("streamed layers: share of the bus while copies are under way", 0.95, buses[0]["bus_gb_per_s"] / card["to_device_gb_per_s"] if buses and card else None)
    goal("streamed layers: part of the time in which the bus was busy", 0.95, buses[0]["bus_busy"] if buses else None)
    eight = found("GPT-J f16, 4 ranks of 4 GiB, 8 prompts", "decode")
    goal("GPT-J f16 on four ranks, 8 prompts: part of the time in which ranks computed, their mean", 0.85,
         statistics.mean(rank["busy"] for rank in eight["ranks"]) if eight and eight["ranks"] else None)
    return goals


def number(value, digits=1):
    return "-" if value is None else f"{value:.{digits}f}"


def text(summary):
    lines = [f"{step['step']:<12} {step['result']:<16} {step['seconds']:>5} s  {step['said']}" for step in summary["steps"]]
    card = summary["card"]
    if card:
        lines += ["", f"{card['card']}, capability {card['capability']}, {card['memory_gb']} GB: reads {card['read_gb_per_s']} GB/s; page-locked copies to it "
                      f"{card['to_device_gb_per_s']}, from it {card['to_host_gb_per_s']} GB/s; cuBLAS f32 {card['f32_gflop_per_s']}, f16 {card['f16_gflop_per_s']}, "
                      f"bf16 {card['bf16_gflop_per_s']} GFLOP/s; seed {card['seed']}", "",
                  f"{'kernel':<54} {'us':>11} {'GB/s':>9} {'GFLOP/s':>10} {'of limit':>9}"]
    for kernel in summary["kernels"]:
        if "skipped" in kernel:
            lines.append(f"{kernel['kernel']:<54} skipped: {kernel['skipped']}")
            continue
        lines.append(f"{kernel['kernel']:<54} {kernel['us']:>11.2f} {kernel['gb_per_s']:>9.1f} {kernel['gflop_per_s']:>10.1f} "
                     f"{100 * kernel['share_of_limit']:>7.0f} % {kernel['limit']}" + ("" if kernel["agrees"] else "  WRONG"))
    if summary["times"]:
        lines += ["", f"{'run':<56} {'phase':<8} {'ms':>10} {'tokens/s':>10} {'layer ms':>9} {'compute':>9} {'GB/s':>8} {'GFLOP/s':>9}"]
    for row in summary["times"]:
        lines.append(f"{row['run']:<56} {row['phase']:<8} {number(row['ms'], 2):>10} {number(row['tokens_per_second']):>10} {number(row['layer_ms'], 2):>9} "
                     f"{number(row['layer_compute_ms'], 2):>9} {number(row['layer_gb_per_s']):>8} {number(row['layer_gflop_per_s']):>9}")
    lines += ["", f"{'goal':<92} {'wanted':>14} {'reached':>8}"]
    for goal in summary["goals"]:
        verdict = {None: "not measured", True: "met", False: "not met"}[goal["met"]]
        lines.append(f"{goal['goal']:<92} {goal['wanted']:>14} {number(goal['reached'], 2):>8} {verdict}")
    return "\n".join(lines) + "\n"


def main():
    if len(sys.argv) != 2:
        print("usage: scripts/bench/cuda_card_summary.py DIR", file=sys.stderr)
        return 2
    folder = pathlib.Path(sys.argv[1])
    bench = json_lines(folder / "cuda_bench.jsonl")
    kernels = [o for o in bench if "kernel" in o]
    card, times = next((o for o in bench if "card" in o), None), timings_of([o for path in sorted(folder.glob("time.*.jsonl")) for o in json_lines(path)])
    summary = {"steps": steps_of(folder / "steps.tsv"), "card": card, "kernels": kernels,
               "wrong": [o["kernel"] for o in kernels if not o.get("agrees", True)], "times": times, "goals": goals_of(times, card or rates_of(folder))}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "summary.txt").write_text(text(summary), encoding="utf-8")
    print("\n" + text(summary), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
