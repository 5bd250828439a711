#!/usr/bin/env python3
"""How busy a streamed prefill keeps hosts: one text goes through a model twice as large as the memory of all hosts
(scripts/lan_cluster, needs root). Reports the share of time in which each rank reads, computes, does either, and
waits for weights, between the first and the last computation that was measured. All hosts share this machine's
cores."""

import sys

from support import Lan, lan_arguments, layer_bytes, layers_for_hosts, main, positive, ratio, table


def parse():
    parser = lan_arguments(__doc__, time_limit=1200)
    parser.add_argument("--rounds", default="auto")
    parser.add_argument("--tokens", type=positive, default=256, help="of the text")
    parser.add_argument("--micro-batch", type=positive, help="rows of a micro-batch (stagecoach's default if not given)")
    parser.add_argument("--repeat", type=positive, default=2, help="measured passes")
    flags = parser.parse_args()
    flags.layers = layers_for_hosts(flags, flags.hosts)
    return flags


def measure(bench):
    flags = bench.flags
    memory, rate = flags.memory, flags.disk
    store = bench.store(flags.layers)
    lan = Lan(bench)
    measured_rate = lan.disk_rate(store)
    bench.say(f"prefill of {flags.tokens} tokens")
    timed = bench.time(store, phase="prefill", tokens=flags.tokens, lan=lan, ranks=flags.hosts, memory=memory, rounds=flags.rounds,
                       micro_batch=flags.micro_batch, warmup=1, repeat=flags.repeat)
    trace, streamed = timed.trace, timed.streamed_bytes()
    ranks = []
    for rank, summary in zip(trace.ranks(), timed.run["ranks"]):
        ranks.append({"rank": rank, "host": summary["host"], "layers": summary["layers"], "reading": trace.share(rank, *trace.READS),
                      "computing": trace.share(rank, *trace.COMPUTES), "busy": trace.share(rank, *trace.READS, *trace.COMPUTES),
                      "waiting_for_weights": trace.share(rank, *trace.WAITS_FOR_WEIGHTS), "streamed_bytes": streamed[rank],
                      "disk_share": streamed[rank] / timed.seconds / rate, "peak_bytes": summary["peak_bytes"]})
    weights = flags.layers * layer_bytes(flags) / flags.hosts
    print(f"{lan.describe(flags.layers)}; raw reads of all at once: {measured_rate / 1e6:.0f} MB/s each; "
          f"{flags.tokens} tokens in {timed.seconds:.2f} s")
    table(["rank", "busy", "reading", "computing", "waits for weights", "MB/pass", "of disk rate", "peak MB"],
          [[r["rank"], r["busy"], r["reading"], r["computing"], r["waiting_for_weights"], f"{r['streamed_bytes'] / 1e6:.0f}", r["disk_share"],
            f"{r['peak_bytes'] / 1e6:.0f}"] for r in ranks])
    return {"hosts": flags.hosts, "layers": flags.layers, "tokens": flags.tokens, "memory_bytes": memory, "weights_per_host_bytes": weights,
            "disk_bytes_per_s": rate, "disk_measured_bytes_per_s": measured_rate, "link_mbit": flags.link, "pass_s": timed.seconds,
            "tokens_per_second": timed.summary["tokens_per_second"], "ranks": ranks, "host_usage": lan.usage(),
            "ratios": {"busy_min": min(r["busy"] for r in ranks), "busy_mean": sum(r["busy"] for r in ranks) / len(ranks),
                       "reading_mean": sum(r["reading"] for r in ranks) / len(ranks),
                       "streamed_over_weights": ratio(max(r["streamed_bytes"] for r in ranks), weights)}}


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
