#!/usr/bin/env python3
"""How close streaming comes to the disk and to computing: one process with a store larger than its memory, in turns
with `stagecoach probe`, which reads the same slabs with nothing else going on (A B A B). Decode of one token waits for
the disk, prefill of many computes longer than the disk takes. Reports the step's time over the longer of the two:
bytes streamed a step at the probed rate, and the computation that the step's own rows say. (What staging costs in CPU
time, and streaming without computing, is measured by the target stager_bench.)"""

import json
import os
import sys
import tempfile

from support import BenchError, arguments, byte_size, layer_bytes, main, median, positive, ratio, table


def parse():
    parser = arguments(__doc__, hidden_size=2048, intermediate_size=5632, layers=28, time_limit=900)
    parser.add_argument("--memory", type=byte_size, default="1GiB", help="of the streaming process; less than the store")
    parser.add_argument("--tokens", type=positive, default=256, help="of the prefill")
    parser.add_argument("--repeat", type=positive, default=3, help="measured steps of a run")
    parser.add_argument("--turns", type=positive, default=5, help="probes and runs in turn, for each phase")
    parser.add_argument("--verify", choices=("first", "always", "off"), default="always")
    return parser.parse_args()


def probed_rate(bench, store):
    """Bytes a second of direct reads of the store's slabs."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["STAGECOACH_CACHE"] = cache
        try:
            stdout, _ = bench.run([bench.binary, "probe", "--store", store, "--json", "--quiet"])
        finally:
            del os.environ["STAGECOACH_CACHE"]
    rate = json.loads(stdout.splitlines()[0])["disk_gb_per_s"]
    if rate is None:
        raise BenchError("the disk's rate cannot be probed here")
    return rate * 1e9


def measure(bench):
    flags = bench.flags
    store = bench.store(flags.layers)
    total = sum(slab.stat().st_size for slab in store.glob("layer-*.slab"))
    if flags.memory >= total:
        bench.say(f"--memory of {flags.memory / 1e9:.2f} GB holds all {total / 1e9:.2f} GB: nothing has to be streamed")

    rows, phases = [], {}
    for phase, tokens in (("decode", 1), ("prefill", flags.tokens)):
        turns = []
        before = probed_rate(bench, store)
        for turn in range(flags.turns):
            bench.say(f"{phase}, turn {turn + 1} of {flags.turns}")
            timed = bench.time(store, phase=phase, tokens=tokens, warmup=1, repeat=flags.repeat, memory=flags.memory, verify=flags.verify)
            after = probed_rate(bench, store)
            # Of the neighbours before and after: the disk is shared, and drifts.
            rate, before = (before + after) / 2, after
            streamed = sum(timed.streamed_bytes().values())
            disk = streamed / rate
            compute = sum(row["compute_ms"] for row in timed.rows) / 1e3
            turns.append({"probed_bytes_per_s": rate, "step_s": timed.seconds, "streamed_bytes": streamed, "disk_s": disk,
                          "compute_s": compute, "step_over_longer": ratio(timed.seconds, max(disk, compute)),
                          "peak_bytes": timed.run["ranks"][0]["peak_bytes"]})
        middle = {key: median([turn[key] for turn in turns]) for key in turns[0]}
        spread = [turn["step_over_longer"] for turn in turns]
        phases[phase] = {**middle, "tokens": tokens, "turns": turns}
        rows.append([phase, tokens, middle["probed_bytes_per_s"] / 1e9, middle["streamed_bytes"] / 1e9, middle["disk_s"], middle["compute_s"],
                     middle["step_s"], middle["step_over_longer"], f"{min(spread):.3f}-{max(spread):.3f}", middle["peak_bytes"] / 1e9])

    print(f"store {total / 1e9:.2f} GB in {flags.layers} layers of {layer_bytes(flags) / 1e6:.1f} MB, --memory of {flags.memory / 1e9:.2f} GB, "
          f"--verify {flags.verify}; medians over {flags.turns} turns of {flags.repeat} steps")
    table(["phase", "tokens", "probed GB/s", "GB/step", "disk s", "compute s", "step s", "step/longer", "range", "peak GB"], rows)
    return {"store_bytes": total, "memory_bytes": flags.memory, "layers": flags.layers, "phases": phases,
            "ratios": {phase: phases[phase]["step_over_longer"] for phase in phases}}


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
