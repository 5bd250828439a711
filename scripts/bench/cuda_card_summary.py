#!/usr/bin/env python3
"""Turns what cuda_card.sh left in a folder (steps.tsv, results.jsonl, trace.ranks.json) into summary.txt and summary.json there, and
prints the former. Of several folders, one for each call on the same kind of card, it prints the summary of all: where two have
the same step, the later one's. A step that left nothing, or half a line, is shown as far as it got."""

import json
import pathlib
import statistics
import sys

STEP_COLUMNS = ("step", "result", "seconds", "card", "said")


def read_text(path):
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def json_lines(path):
    """The objects of a file of lines; a last line that was cut off is left out."""
    objects = []
    for line in read_text(path).split("\n"):
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return objects


def steps_of(path):
    rows = [line.split("\t") for line in read_text(path).split("\n") if line]
    return [dict(zip(STEP_COLUMNS, row)) for row in rows if len(row) == len(STEP_COLUMNS)]


def joined(folders):
    """(steps, results, trace) of all folders."""
    steps, results, trace = {}, {}, None
    for folder in folders:
        for step in steps_of(folder / "steps.tsv"):
            steps.pop(step["step"], None)
            steps[step["step"]] = step
            results[step["step"]] = []
        for line in json_lines(folder / "results.jsonl"):
            results.setdefault(line.get("step"), []).append(line)
        try:
            trace = json.loads(read_text(folder / "trace.ranks.json"))
        except json.JSONDecodeError:  # none, or half of one
            pass
    return list(steps.values()), [line for lines in results.values() for line in lines], trace


def rates_of(results):
    """The card's rates as cuda_bench found them, else as `probe` did; {} without either."""
    for measured in results:
        if "card" in measured:
            return measured
    for probed in results:
        for gpu in probed.get("gpus") or ():
            return {"read_gb_per_s": gpu["device_gb_per_s"], "to_device_gb_per_s": gpu["bus_gb_per_s"]}
    return {}


def timings_of(results):
    """A row for each run and phase: the pass, and the middle layer of it."""
    rows = []
    timed = [o for o in results if "run" in o and "phase" in o]
    for run in dict.fromkeys(o["run"] for o in timed):
        mine = [o for o in timed if o["run"] == run]
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


def part_computed(trace):
    """Part of the time of a trace's measured decode passes in which one rank or another computed."""
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in trace["traceEvents"]
                   if event["ph"] == "X" and event["cat"] == "decode" and event["args"]["pass"] >= 0 and
                   event["name"].split(" ")[0] in ("attention", "mlp", "embedding", "head"))
    if not spans:
        return None
    covered, reached = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered / (reached - spans[0][0])


def goals_of(times, results, trace, cards):
    """What the project wants of a card: (goal, wanted, reached or None, whether met or None). Shares are of what the card itself was
    measured to do. cards: how many the machine has."""
    rates = rates_of(results)

    def found(run, phase):
        return next((row for row in times if row["run"].startswith(run) and row["phase"] == phase), None)

    def ratio(part, whole):
        return part / whole if part is not None and whole else None

    goals = []

    def goal(text, wanted, reached, at_most=False):
        met = None if reached is None else (reached <= wanted if at_most else reached >= wanted)
        goals.append({"goal": text, "wanted": ("at most " if at_most else "at least ") + f"{wanted:.2f}", "reached": reached, "met": met})

    layer = found("GPT-3 bf16, 1 layer, --device-memory 24GB", "prefill")
    products = next((o for o in results if str(o.get("kernel")).startswith("GPT-3 layer's products in cuBLAS bf16") and "us" in o), None)
    goal("GPT-3 layer, 2,048 tokens, bf16: time over that of its products alone in cuBLAS", 1.2,
         ratio(layer["layer_ms"], products["us"] / 1000) if layer and products else None, at_most=True)
    for run, weights in (("GPT-3 bf16, 1 layer, --device-memory 24GB", "bf16"), ("GPT-J q8, 8 layers", "q8"), ("GPT-J q4, 8 layers", "q4")):
        row = found(run, "decode")
        goal(f"decode, one row, {weights}: share of the card's memory bandwidth", 0.85,
             row and ratio(row["layer_gb_per_s"], rates.get("read_gb_per_s")))
    streamed = found("GPT-3 bf16, 3 layers", "decode")
    bus = next((rank for rank in (streamed["ranks"] if streamed else []) if rank.get("copied_bytes")), None)
    goal("streamed layers: their bytes over the time of a pass, share of what a page-locked copy reaches", 0.95,
         bus and ratio(bus["copied_bytes"] / bus["wall_ms"] * 1e-6, rates.get("to_device_gb_per_s")))
    eight, one = (found(f"GPT-J f16, 4 ranks of 4 GiB, {prompts} prompts", "decode") for prompts in (8, 1))
    if cards >= 4:
        goal("GPT-J f16 on four cards, 8 prompts: part of the time in which they computed, their mean", 0.85,
             statistics.mean(rank["busy"] for rank in eight["ranks"]) if eight and eight["ranks"] else None)
    else:
        # Ranks that share a card each have it for a while only: what counts is whether it ever stands still.
        goal("GPT-J f16 on four ranks that share a card, 8 prompts: part of the time in which it computed", 0.85,
             part_computed(trace) if trace else None)
    reference = next((o for o in results if str(o.get("run")).startswith("transformers")), None)
    goal("GPT-J f16 on four ranks, 1 prompt: speed over that of transformers on the same cards", 2.0,
         ratio(one and one["tokens_per_second"], reference and reference["tokens_per_second"]))
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
    lines += ["", f"{'goal':<96} {'wanted':>14} {'reached':>8}"]
    for goal in summary["goals"]:
        verdict = {None: "not measured", True: "met", False: "not met"}[goal["met"]]
        lines.append(f"{goal['goal']:<96} {goal['wanted']:>14} {number(goal['reached'], 2):>8} {verdict}")
    return "\n".join(lines) + "\n"


def main():
    folders = [pathlib.Path(argument) for argument in sys.argv[1:]]
    if not folders or any(not folder.is_dir() for folder in folders):
        print("usage: scripts/bench/cuda_card_summary.py FOLDER…", file=sys.stderr)
        return 2
    steps, results, trace = joined(folders)
    cards = {step["card"] for step in steps}
    if len(cards) > 1:
        print(f"cuda_card_summary: these are results of different cards: {'; '.join(sorted(card or 'none' for card in cards))}", file=sys.stderr)
        return 2
    names = [name for card in cards for name in card.split("+") if name]
    kernels, times = [o for o in results if "kernel" in o], timings_of(results)
    summary = {"cards": names, "steps": steps, "card": next((o for o in results if "card" in o), None), "kernels": kernels,
               "wrong": [o["kernel"] for o in kernels if not o.get("agrees", True)], "times": times,
               "goals": goals_of(times, results, trace, len(names))}
    if len(folders) == 1:
        (folders[0] / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        (folders[0] / "summary.txt").write_text(text(summary), encoding="utf-8")
    print("\n" + text(summary), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
