#!/usr/bin/env python3
"""What rounds are worth: hosts with slow disks and too little memory (scripts/lan_cluster, needs root) decode one
sequence with many rounds and with one, and several sequences at once. Times stand beside what the disks allow:
with N hosts, S bytes of weights and R bytes of memory on each, k rounds stream at least
O = min(S, (S-R)*N*k / (N*(k-1)+1)) bytes a step and host, which takes O / disk rate; one round takes
N*(S-R) / disk rate. All hosts share this machine's cores."""

import sys

from support import Lan, lan_arguments, layer_bytes, layers_for_hosts, main, positive, ratio, table


def parse():
    parser = lan_arguments(__doc__, time_limit=1500)
    parser.add_argument("--rounds", type=positive, default=8)
    parser.add_argument("--tokens", type=positive, default=16, help="context before the step")
    parser.add_argument("--batch", type=positive, default=8, help="sequences at once")
    parser.add_argument("--repeat", type=positive, default=3, help="measured steps")
    flags = parser.parse_args()
    flags.layers = layers_for_hosts(flags, flags.hosts * flags.rounds)
    return flags


def streamed_at_best(hosts, rounds, weights, memory):
    """DESIGN's bound, in bytes a step and host."""
    return min(weights, max(0, weights - memory) * hosts * rounds / (hosts * (rounds - 1) + 1))


def step_at_best(hosts, rounds, weights, memory, rate):
    if rounds == 1:
        return hosts * max(0, weights - memory) / rate
    return streamed_at_best(hosts, rounds, weights, memory) / rate


def measure(bench):
    flags = bench.flags
    memory, rate = flags.memory, flags.disk
    store = bench.store(flags.layers)
    lan = Lan(bench)
    measured_rate = lan.disk_rate(store)
    weights = flags.layers * layer_bytes(flags) / flags.hosts  # S

    runs = {}
    for name, rounds, batch in ((f"{flags.rounds} rounds", flags.rounds, 1), ("1 round", 1, 1),
                                (f"{flags.rounds} rounds, {flags.batch} sequences", flags.rounds, flags.batch)):
        bench.say(name)
        timed = bench.time(store, phase="decode", tokens=flags.tokens, lan=lan, ranks=flags.hosts, memory=memory, rounds=rounds,
                           batch=batch, warmup=1, repeat=flags.repeat)
        # What a budget leaves for weights: the bound's R. The rest are code, workspace, keys and values.
        others = max(rank["peak_bytes"] - rank["weights_bytes"] for rank in timed.run["ranks"])
        room = memory - others
        bound = step_at_best(flags.hosts, rounds, weights, room, rate)
        streamed = timed.streamed_bytes()
        runs[name] = {"rounds": rounds, "batch": batch, "step_s": timed.seconds, "token_s": timed.seconds / batch,
                      "bound_bytes": streamed_at_best(flags.hosts, rounds, weights, room), "room_for_weights_bytes": room, "bound_s": bound,
                      "step_over_bound": ratio(timed.seconds, bound),
                      "streamed_bytes": [streamed[rank] for rank in sorted(streamed)],
                      "read_share": [timed.trace.share(rank, "read") for rank in timed.trace.ranks()],
                      "compute_share": [timed.trace.share(rank, *timed.trace.COMPUTES) for rank in timed.trace.ranks()],
                      "peak_bytes": [rank["peak_bytes"] for rank in timed.run["ranks"]],
                      "weights_bytes": [rank["weights_bytes"] for rank in timed.run["ranks"]]}
    many, one, together = runs.values()

    print(f"{lan.describe(flags.layers)}; raw reads of all at once: {measured_rate / 1e6:.0f} MB/s each")
    table(["decode", "step s", "s/token", "bound s", "step/bound", "MB/step and host", "bound MB", "reading", "computing", "peak MB"],
          [[name, run["step_s"], run["token_s"], run["bound_s"], run["step_over_bound"], f"{max(run['streamed_bytes']) / 1e6:.0f}",
            f"{run['bound_bytes'] / 1e6:.0f}", f"{min(run['read_share']):.0%}-{max(run['read_share']):.0%}",
            f"{min(run['compute_share']):.0%}-{max(run['compute_share']):.0%}", f"{max(run['peak_bytes']) / 1e6:.0f}"]
           for name, run in runs.items()])
    ratios = {"one_round_over_many": ratio(one["step_s"], many["step_s"]), "one_round_over_many_at_best": ratio(one["bound_s"], many["bound_s"]),
              "many_rounds_over_bound": many["step_over_bound"], "token_of_batch_over_single": ratio(together["token_s"], many["token_s"])}
    print(f"one round takes {one['step_s'] / many['step_s']:.2f} times as long as {flags.rounds}; a token of {flags.batch} sequences at once "
          f"costs {together['token_s'] / many['token_s']:.3f} of a single sequence's")
    return {"hosts": flags.hosts, "layers": flags.layers, "weights_per_host_bytes": weights, "memory_bytes": memory, "disk_bytes_per_s": rate,
            "disk_measured_bytes_per_s": measured_rate, "link_mbit": flags.link, "runs": runs, "host_usage": lan.usage(), "ratios": ratios}


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
