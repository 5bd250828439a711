#!/usr/bin/env python3
"""How close streaming comes to the disk: one process decodes with a store larger than its memory, in turns with
a raw direct read of the same files (A B A B). Reports bytes streamed a step over the step's time, as a ratio of
the raw read's rate, for each way to verify; and what a streamed gigabyte costs in CPU seconds, which is what a
step takes more of them than a step of the same model in memory."""

import sys

import direct_read
from support import arguments, byte_size, layer_bytes, main, median, positive, ratio, table

VERIFY = ("first", "always", "off")


def parse():
    parser = arguments(__doc__, hidden_size=2048, intermediate_size=5632, layers=28, time_limit=900)
    parser.add_argument("--memory", type=byte_size, default="1GiB", help="of the streaming process; less than the store")
    parser.add_argument("--repeat", type=positive, default=3, help="measured steps of a run")
    parser.add_argument("--turns", type=positive, default=3, help="raw reads and runs in turn, for each way to verify")
    parser.add_argument("--verify", choices=VERIFY, nargs="+", default=VERIFY, help="ways to measure")
    parser.add_argument("--no-resident", action="store_true", help="the model does not fit into this machine's memory: no CPU seconds")
    return parser.parse_args()


class CpuOfStep:
    """CPU seconds of one step, from the difference between a long and a short run: both load alike."""

    def __init__(self, bench, store, **settings):
        self.bench, self.store, self.settings = bench, store, settings

    def measure(self, repeat):
        """The long run, and the CPU seconds of one of its steps."""
        short = self.bench.time(self.store, phase="decode", tokens=1, warmup=1, repeat=1, **self.settings)
        long = self.bench.time(self.store, phase="decode", tokens=1, warmup=1, repeat=1 + repeat, **self.settings)
        return long, (long.cpu_seconds - short.cpu_seconds) / repeat


def measure(bench):
    flags = bench.flags
    store = bench.store(flags.layers)
    slabs = sorted(store.glob("layer-*.slab"))
    total = sum(slab.stat().st_size for slab in slabs)
    if flags.memory >= total:
        bench.say(f"--memory of {flags.memory / 1e9:.2f} GB holds all {total / 1e9:.2f} GB: nothing has to be streamed")

    resident_cpu = None
    if not flags.no_resident:
        bench.say("the model in memory")
        _, resident_cpu = CpuOfStep(bench, store).measure(flags.repeat)

    rows, modes = [], {}
    for verify in flags.verify:
        turns = []
        for turn in range(flags.turns):
            bench.say(f"--verify {verify}, turn {turn + 1} of {flags.turns}")
            size, seconds = direct_read.read_files(slabs)
            raw_rate = size / seconds
            timed, cpu = CpuOfStep(bench, store, memory=flags.memory, verify=verify).measure(flags.repeat)
            streamed = sum(timed.streamed_bytes().values())
            rate = streamed / timed.seconds
            turns.append({"raw_bytes_per_s": raw_rate, "step_ms": timed.seconds * 1e3, "streamed_bytes": streamed,
                          "step_bytes_per_s": rate, "ratio": ratio(rate, raw_rate), "cpu_seconds_per_step": cpu,
                          "compute_ms": sum(row["compute_ms"] for row in timed.rows), "wait_ms": sum(row["wait_ms"] for row in timed.rows),
                          "peak_bytes": timed.run["ranks"][0]["peak_bytes"]})
        middle = {key: median([turn[key] for turn in turns]) for key in turns[0]}
        cpu_per_gb = None
        if resident_cpu is not None:
            cpu_per_gb = ratio(middle["cpu_seconds_per_step"] - resident_cpu, middle["streamed_bytes"] / 1e9)
        modes[verify] = {**middle, "ratio_min": min(t["ratio"] for t in turns), "ratio_max": max(t["ratio"] for t in turns),
                         "cpu_seconds_per_gb": cpu_per_gb, "turns": turns}
        rows.append([verify, middle["raw_bytes_per_s"] / 1e9, middle["step_bytes_per_s"] / 1e9, middle["ratio"],
                     f"{modes[verify]['ratio_min']:.3f}-{modes[verify]['ratio_max']:.3f}", middle["streamed_bytes"] / 1e9,
                     middle["step_ms"], middle["compute_ms"], middle["wait_ms"], cpu_per_gb, middle["peak_bytes"] / 1e9])

    print(f"store {total / 1e9:.2f} GB in {flags.layers} layers of {layer_bytes(flags) / 1e6:.1f} MB, --memory of {flags.memory / 1e9:.2f} GB; "
          f"medians over {flags.turns} turns of {flags.repeat + 1} steps")
    table(["verify", "raw GB/s", "step GB/s", "ratio", "range", "GB/step", "step ms", "compute ms", "wait ms", "CPU s/GB", "peak GB"], rows)
    return {"store_bytes": total, "memory_bytes": flags.memory, "layers": flags.layers,
            "resident_cpu_seconds_per_step": resident_cpu, "verify": modes,
            "ratios": {verify: modes[verify]["ratio"] for verify in modes}}


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
