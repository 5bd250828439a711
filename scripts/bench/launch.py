#!/usr/bin/env python3
"""What `stagecoach launch` is worth on a LAN of unequal hosts (scripts/lan_cluster, needs root): how much of the link shipping
reaches, whether what the plan says comes true where slices are in memory and where they stream, and how long a job stands still when a host is
lost. Hosts have their own memory, disk, processors and 1 GbE cable. Of a processor's rates a host has as much as of its time: `probe` inside it would
find what the processor does in a turn, not how many turns the host gets."""

import json
import os
import signal
import subprocess
import sys
import time

from support import LAN, BenchError, Lan, lan_arguments, layer_bytes, main, positive, ratio, table

CPUS = (0.6, 0.45, 0.45, 0.3)   # of each host, all of them together less than this machine has
MEMORY = (1.0, 1.4, 0.7, 0.9)   # of --memory
DISKS = (1.0, 1.0, 0.5, 1.0)    # of --disk
TCP_SHARE = 0.94                # of a link's bits, what TCP carries of a payload


def parse():
    parser = lan_arguments(__doc__, time_limit=1500)
    parser.add_argument("--tokens", type=positive, default=128, help="of the prompt")
    parser.add_argument("--repeat", type=positive, default=3, help="measured passes")
    parser.add_argument("--resident-layers", type=positive, default=40, help="of the model whose slices fit in memory")
    parser.set_defaults(hosts=4, memory=512_000_000)
    flags = parser.parse_args()
    if flags.hosts != len(CPUS):
        parser.error(f"--hosts: this benchmark describes {len(CPUS)}")
    # A third more than all memory.
    flags.layers = flags.layers or round(1.33 * sum(MEMORY) * flags.memory / layer_bytes(flags))
    return flags


class Cluster:
    """Hosts with agents; launches from the first."""

    def __init__(self, bench):
        self.bench, flags = bench, bench.flags
        self.lan = Lan(bench)
        self.key = bench.reports / "key"
        self.rates = json.loads(bench.run([bench.binary, "probe", "--threads", 1, "--json"])[0].splitlines()[0])
        bench.run([bench.binary, "agent", "--new-key", self.key])
        for host in range(1, flags.hosts + 1):
            bench.run([LAN, "limit", host, "--memory", self.memory(host) + flags.headroom, "--cpus", CPUS[host - 1],
                       "--disk", int(DISKS[host - 1] * flags.disk), "--disk-path", bench.work])
            if host > 1:
                self.start_agent(host)

    def rates_of(self, host):
        share = CPUS[host - 1]
        names = ("memory_gb_per_s", "f32_gflop_per_s", "bf16_gflop_per_s", "int8_gop_per_s")
        return "".join(f"{name} = {self.rates[name] * share}\n" for name in names) + f"disk_gb_per_s = {DISKS[host - 1] * self.bench.flags.disk / 1e9}\n"

    def memory(self, host):
        return int(MEMORY[host - 1] * self.bench.flags.memory)

    def folder(self, host):
        return self.bench.reports / f"host{host}"

    def start_agent(self, host):
        self.folder(host).mkdir()
        command = [LAN, "exec", host, self.bench.binary, "agent", "--key", self.key, "--stores", self.folder(host), "--state", self.folder(host)]
        agent = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 env=os.environ | {"STAGECOACH_CACHE": str(self.folder(host) / "cache")})
        self.bench.undo.callback(agent.wait)
        self.bench.undo.callback(agent.kill)

    def job(self, name, store, run, **launch):
        text = f'[launch]\nkey = "{self.key}"\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in launch.items())
        text += f'[run]\nstore = "{store}"\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in run.items())
        text += f"[network]\ngb_per_s = {TCP_SHARE * self.bench.flags.link / 8e3}\n"
        for host in range(1, self.bench.flags.hosts + 1):
            text += f'[nodes.sc-host{host}]\naddress = "10.77.0.{host}"\nmemory = {self.memory(host)}\n{self.rates_of(host)}'
            if host > 1:  # the first one launches, with the whole model
                text += f'store = "{self.folder(host) / store.name}"\n'
        file = self.bench.reports / f"{name}.toml"
        file.write_text(text)
        return file

    def command(self, *arguments):
        environment = ["env", f"STAGECOACH_CACHE={self.folder(1) / 'cache'}", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"]
        return [str(c) for c in (LAN, "exec", 1, *environment, self.bench.binary, "launch", *arguments, "--state", self.folder(1) / "state")]

    def launch(self, *arguments):
        begin = time.monotonic()
        stdout, _ = self.bench.run(self.command(*arguments))
        return [json.loads(line) for line in stdout.splitlines() if line.startswith("{")], time.monotonic() - begin


def shipping(cluster, store, flags):
    """Every host gets its slice from the first, whose disk is no limit for once. Without the launch's own time, which a second one of the same
    job tells."""
    for host in range(1, flags.hosts + 1):
        cluster.bench.run([LAN, "limit", host, "--disk", "none", "--disk-path", cluster.bench.work])
    job = cluster.job("ship", store, {"tokens": 1, "repeat": 1, "warmup": 0, "phase": "prefill", "json": True}, command="time")
    plan = cluster.launch(job, "--dry-run", "--json")[0][0]
    size = sum(rank["bytes_to_ship"] for rank in plan["ranks"])
    first = cluster.launch(job)[1]
    second = cluster.launch(job)[1]
    for host in range(1, flags.hosts + 1):
        cluster.bench.run([LAN, "limit", host, "--disk", int(DISKS[host - 1] * flags.disk), "--disk-path", cluster.bench.work])
    link = TCP_SHARE * flags.link / 8 * 1e6
    return {"bytes": size, "seconds": first - second, "bytes_per_s": size / (first - second), "share_of_link": ratio(size / (first - second), link)}


def prediction(cluster, name, store, flags):
    figures = {"layers": None}
    for phase in ("prefill", "decode"):
        run = {"tokens": flags.tokens, "repeat": flags.repeat, "warmup": 1, "phase": phase, "json": True, "quiet": True, "threads": 1}
        job = cluster.job(f"{name}-{phase}", store, run, command="time")
        plan = cluster.launch(job, "--dry-run", "--json")[0][0]
        summary = next(line for line in cluster.launch(job)[0] if line.get("summary"))
        planned = plan["time_to_first_token"] if phase == "prefill" else 1 / plan["tokens_per_second"]
        figures[phase] = {"planned_s": planned, "measured_s": summary["ms"] / 1e3, "windows": plan["windows"], "rounds": plan["rounds"],
                          "hosts": [rank["host"] for rank in plan["ranks"]], "bound_by": plan["bound_by"],
                          "measured_over_planned": ratio(summary["ms"] / 1e3, planned)}
    return figures


def standstill(cluster, store, flags):
    """A host is lost amid a generation: from the cut to the first text after it."""
    prompts = cluster.bench.reports / "prompts"
    prompts.write_text("a\n" * 4)
    job = cluster.job("lost", store, {"prompts": str(prompts), "max_new_tokens": 400, "ignore_eos": True, "greedy": True, "max_sequences": 1, "verbose": True},
                      replicas=2)
    victim = cluster.launch(job, "--dry-run", "--json")[0][0]["ranks"][-1]["host"].removeprefix("sc-host")
    cluster.launch(cluster.job("copies", store, {"prompt_ids": "1", "max_new_tokens": 1}, replicas=2))  # so that copies are there
    errors = cluster.bench.reports / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(cluster.command(job), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True)
    try:
        wait_for(errors, "all ranks are ready", process, 1)
        time.sleep(2)
        cut = time.monotonic()
        subprocess.run([LAN, "cut", victim], check=True)
        wait_for(errors, "lost, with", process, 1)
        named = time.monotonic() - cut
        wait_for(errors, "all ranks are ready", process, 2)
        return {"named_s": named, "again_s": time.monotonic() - cut}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(30)
        subprocess.run([LAN, "plug", victim], check=True)


def wait_for(file, text, process, times):
    while file.read_text(errors="replace").count(text) < times:
        if process.poll() is not None:
            raise BenchError(f"the launch ended with code {process.returncode}:\n{file.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def measure(bench):
    flags = bench.flags
    cluster = Cluster(bench)
    resident = bench.store(flags.resident_layers)
    bench.say("shipping")
    shipped = shipping(cluster, resident, flags)
    bench.say("slices in memory")
    results = {"in memory": prediction(cluster, "resident", resident, flags)}
    bench.say("a host is lost")
    lost = standstill(cluster, resident, flags)
    streamed = bench.store(flags.layers)
    bench.say("slices on disk")
    results["streamed"] = prediction(cluster, "streamed", streamed, flags)
    print(f"{flags.hosts} hosts: processors {CPUS}, memory {[cluster.memory(h) // 1_000_000 for h in range(1, flags.hosts + 1)]} MB, disks "
          f"{[int(d * flags.disk) // 1_000_000 for d in DISKS]} MB/s, links of {flags.link} Mbit/s; layers of {layer_bytes(flags) / 1e6:.1f} MB: "
          f"{flags.resident_layers} in memory, {flags.layers} streamed")
    print(f"shipping: {shipped['bytes'] / 1e6:.0f} MB at {shipped['bytes_per_s'] / 1e6:.1f} MB/s, {shipped['share_of_link']:.0%} of what the link carries")
    table(["slices", "phase", "planned s", "measured s", "measured/planned", "rounds", "bound by", "windows"],
          [[name, phase, figures[phase]["planned_s"], figures[phase]["measured_s"], figures[phase]["measured_over_planned"], figures[phase]["rounds"],
            figures[phase]["bound_by"], figures[phase]["windows"][:40]] for name, figures in results.items() for phase in ("prefill", "decode")])
    print(f"a cut cable: named after {lost['named_s']:.1f} s, all ranks of the others ready after {lost['again_s']:.1f} s")
    return {"hosts": flags.hosts, "cpus": CPUS, "link_mbit": flags.link, "shipping": shipped, "predictions": results, "lost": lost}


if __name__ == "__main__":
    sys.exit(main(parse(), measure))
