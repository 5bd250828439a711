"""What the benchmarks share: stores of random weights that are not in the page cache, runs of the binary alone and
on a small LAN, what their reports say, and a table with a line of JSON at the end."""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAN = ROOT / "scripts/lan_cluster"
DIRECT_READ = ROOT / "scripts/bench/direct_read.py"
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SKIPPED = 77  # as lan_cluster says that this machine allows no such thing


class BenchError(Exception):
    """Ends the benchmark with one message."""

    def __init__(self, message, code=1):
        super().__init__(message)
        self.code = code


def byte_size(text):
    number = text.rstrip("BkKMGTi ")
    try:
        size = int(float(number) * UNITS[text[len(number):].strip()])
    except (KeyError, ValueError):
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write it like 3GiB, 500MB or 4096")
    return size


def positive(text):
    """A count."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got '{text}'")
    return value


def run_arguments(description, **defaults):
    """A parser with the flags of every benchmark; `defaults` are their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/release/bin/stagecoach", help="the binary to measure")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "build/bench",
                        help="folder for the store, on the disk to measure; what is put there is removed, but with --keep")
    parser.add_argument("--keep", action="store_true", help="leave the store in --work for the next time")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the figures to FILE, too")
    parser.add_argument("--time-limit", type=positive, metavar="S", help="give up, and clean up, after so many seconds")
    parser.add_argument("--threads", type=positive, metavar="N", help="compute threads of each rank (stagecoach's default if not given)")
    parser.set_defaults(**defaults)
    return parser


def arguments(description, **defaults):
    """The flags of benchmarks that make a model of their own."""
    parser = run_arguments(description, **defaults)
    parser.add_argument("--layers", type=positive, metavar="N", help="layers of the model (by default as the sizes demand)")
    parser.add_argument("--hidden-size", type=positive, help="width of the model")
    parser.add_argument("--intermediate-size", type=positive, help="width of its MLP")
    parser.set_defaults(**defaults)  # again: those of the flags just added
    return parser


def lan_arguments(description, **defaults):
    """The flags of benchmarks of hosts with slow disks and a model twice as large as the memory of all of them."""
    parser = arguments(description, hidden_size=1024, intermediate_size=2816, **defaults)
    parser.add_argument("--hosts", type=positive, default=4)
    parser.add_argument("--disk", type=byte_size, default="120MB", help="bytes a second that a host reads")
    parser.add_argument("--link", type=positive, default=1000, help="megabits a second of each host's link")
    parser.add_argument("--memory", type=byte_size, default="512MB", help="of each rank; the model has twice as much as all of them")
    parser.add_argument("--headroom", type=byte_size, default="256MB", help="memory of a host beside its rank's: mpirun, page cache")
    return parser


def layers_for_hosts(flags, dealt):
    """As many layers as make the model twice as large as all memory: a multiple of `dealt`, so that every window
    is as long as the others."""
    return flags.layers or max(1, round(2 * flags.hosts * flags.memory / layer_bytes(flags) / dealt)) * dealt


class Bench:
    """One benchmark's run: a deadline, and a stack of what has to be undone in any case."""

    def __init__(self, flags):
        self.flags = flags
        self.deadline = time.monotonic() + flags.time_limit
        self.undo = contextlib.ExitStack()
        self.binary = flags.binary.resolve()
        if not os.access(self.binary, os.X_OK):
            raise BenchError(f"{flags.binary} is not there; build it, or say --binary", 2)
        self.flags.work.mkdir(parents=True, exist_ok=True)
        self.work = flags.work.resolve()
        self.reports = pathlib.Path(tempfile.mkdtemp(prefix="reports-", dir=self.work))
        self.undo.callback(self.remove_work)

    def remove_work(self):
        shutil.rmtree(self.reports, ignore_errors=True)
        with contextlib.suppress(OSError):  # holds a store that is kept, or somebody else's files
            self.work.rmdir()

    def say(self, text):
        print(f"{pathlib.Path(sys.argv[0]).name}: {text}", file=sys.stderr, flush=True)

    def run(self, command, check=True):
        """Runs to the end or to the deadline, children included. Returns stdout and CPU seconds of all of it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise BenchError(f"the time limit of {self.flags.time_limit} s is over (--time-limit)")
        # A session of its own, so that everything that it starts can be ended together.
        with subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              start_new_session=True) as process:
            try:
                stdout, stderr = process.communicate(timeout=left)
            except BaseException as error:
                # First the signal upon which lan_cluster and mpirun clean up.
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait(timeout=10)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise BenchError(f"the time limit of {self.flags.time_limit} s is over (--time-limit)") from None
                raise
        if check and process.returncode != 0:
            words = " ".join(str(c) for c in command)
            raise BenchError(f"exit code {process.returncode} of: {words}\n{stderr[-4000:]}",
                             SKIPPED if process.returncode == SKIPPED else 1)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def store(self, layers):
        """A Llama of random f16 weights, written to disk and dropped from the page cache."""
        flags, head_dim = self.flags, 64
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 256, "hidden_size": flags.hidden_size,
                  "intermediate_size": flags.intermediate_size, "num_hidden_layers": layers,
                  "num_attention_heads": flags.hidden_size // head_dim, "num_key_value_heads": flags.hidden_size // head_dim,
                  "max_position_embeddings": 8192, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                  "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
        if flags.hidden_size % head_dim:
            raise BenchError(f"--hidden-size: expected a multiple of {head_dim}, got {flags.hidden_size}", 2)
        path = self.work / f"llama-{layers}x{flags.hidden_size}x{flags.intermediate_size}-f16"
        needed = layers * layer_bytes(flags)
        if not (path / "manifest.json").exists():
            if shutil.disk_usage(self.work).free < needed * 1.1:
                raise BenchError(f"{self.work}: {needed / 1e9:.1f} GB are not free", 4)
            config_file = self.reports / "config.json"
            config_file.write_text(json.dumps(config))
            if not flags.keep:
                self.undo.callback(shutil.rmtree, path, ignore_errors=True)
            self.say(f"creating {layers} layers, {needed / 1e9:.2f} GB")
            self.run([self.binary, "create", config_file, path, "--weights", "f16", "--quiet"])
        drop_from_page_cache(path)
        return path

    def time(self, store, *, phase, tokens, lan=None, ranks=1, **settings):
        """`stagecoach time` with a report: an object with rows, summary, run.json, trace and CPU seconds."""
        drop_from_page_cache(store)
        report = pathlib.Path(tempfile.mkdtemp(dir=self.reports))
        command = [self.binary, "time", "--store", store, "--phase", phase, "--tokens", tokens, "--json", "--quiet", "--report", report]
        settings.setdefault("threads", self.flags.threads)
        for key, value in settings.items():
            if value is not None:
                command += ["--" + key.replace("_", "-"), value]
        if lan is not None:
            command = [LAN, "mpirun", "-np", ranks, *command]
        stdout, cpu_seconds = self.run(command)
        return Timed([json.loads(line) for line in stdout.splitlines() if line.startswith("{")], report, cpu_seconds)


def layer_bytes(flags):
    """Of one Llama layer in f16."""
    return 2 * flags.hidden_size * (4 * flags.hidden_size + 3 * flags.intermediate_size)


def drop_from_page_cache(folder):
    """Written back first: only clean pages can be dropped."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


class Timed:
    """What a run of `stagecoach time` with one phase said."""

    def __init__(self, lines, report, cpu_seconds):
        self.rows = [line for line in lines if not line.get("summary")]
        summaries = [line for line in lines if line.get("summary")]
        if len(summaries) != 1:
            raise BenchError(f"expected one summary of one phase, found {len(summaries)}")
        self.summary = summaries[0]
        self.seconds = self.summary["ms"] / 1e3  # of a pass
        self.run = json.loads((report / "run.json").read_text())
        self.trace = Trace(json.loads((report / "trace.json").read_text()), self.summary["phase"])
        self.cpu_seconds = cpu_seconds
        shutil.rmtree(report)

    def streamed_bytes(self):
        """Bytes that a rank reads in one measured pass, by rank."""
        passes = self.summary["passes"]
        return {rank: self.trace.read_bytes(rank) / passes for rank in self.trace.ranks()}


class Trace:
    """trace.json between the first and the last computation that was measured, which is where a run is in its
    steady state: neither warm-up nor loading."""

    READS = ("read", "verify")
    COMPUTES = ("embedding", "attention", "mlp", "head", "sample")
    WAITS_FOR_WEIGHTS = ("weight wait",)

    def __init__(self, trace, phase):
        events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
        self.spans = [(e["pid"], self.kind(e), e["ts"], e["ts"] + e["dur"], e["args"].get("bytes", 0)) for e in events]
        measured = [e for e in events if e["cat"] == phase and e["args"]["pass"] >= 0 and self.kind(e) in self.COMPUTES]
        if not measured:
            raise BenchError(f"the trace has no measured {phase}")
        self.begin = min(e["ts"] for e in measured)
        self.end = max(e["ts"] + e["dur"] for e in measured)

    @staticmethod
    def kind(event):
        return re.sub(r" \d+$", "", event["name"])  # "mlp 12": of a layer

    def ranks(self):
        return sorted({span[0] for span in self.spans})

    def read_bytes(self, rank):
        """A read that is only partly inside counts for that part."""
        total = 0
        for pid, kind, begin, end, size in self.spans:
            inside = min(end, self.end) - max(begin, self.begin)
            if pid == rank and kind == "read" and inside > 0:
                total += size * inside / (end - begin)
        return total

    def share(self, rank, *kinds):
        """Share of the time in which at least one span of these kinds is under way on the rank."""
        intervals = sorted((max(b, self.begin), min(e, self.end)) for pid, kind, b, e, _ in self.spans if pid == rank and kind in kinds)
        covered, reached = 0, self.begin
        for begin, end in intervals:
            covered += max(0, end - max(begin, reached))
            reached = max(reached, end)
        return covered / (self.end - self.begin)


class Lan:
    """Hosts with limits (scripts/lan_cluster), taken down with the benchmark."""

    def __init__(self, bench):
        flags = bench.flags
        self.bench, self.hosts = bench, flags.hosts
        bench.run([LAN, "up", flags.hosts, "--memory", flags.memory + flags.headroom, "--rate", flags.link, "--disk", flags.disk,
                   "--disk-path", bench.work])
        bench.undo.callback(subprocess.run, [LAN, "down"], check=False, timeout=60)

    def describe(self, layers):
        flags, size = self.bench.flags, layer_bytes(self.bench.flags)
        return (f"{self.hosts} hosts, {layers} layers of {size / 1e6:.1f} MB: {layers * size / self.hosts / 1e6:.0f} MB of weights and "
                f"{flags.memory / 1e6:.0f} MB of memory on each; disks of {flags.disk / 1e6:.0f} MB/s, links of {flags.link} Mbit/s")

    def usage(self):
        """For each host, what lan_cluster says of it."""
        result = []
        for host in range(1, self.hosts + 1):
            lines = self.bench.run([LAN, "usage", host])[0].splitlines()
            result.append({key: None if value == "none" else int(float(value)) for key, value in map(str.split, lines)})
        return result

    def disk_rate(self, store, seconds=4):
        """Bytes per second that every host reads when all read at once, at least."""
        drop_from_page_cache(store)
        readers = []
        try:
            for host in range(1, self.hosts + 1):
                command = [LAN, "exec", host, sys.executable, DIRECT_READ, "--seconds", seconds, *sorted(store.glob("layer-*.slab"))]
                readers.append(subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, text=True))
            rates = [json.loads(reader.communicate(timeout=seconds + 60)[0])["bytes_per_s"] for reader in readers]
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        return min(rates)


def cpu_model():
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def median(values):
    return statistics.median(values)


def ratio(part, whole):
    return part / whole if whole else None


def table(headings, rows):
    def text(cell):
        if cell is None:
            return "-"
        return f"{cell:.3f}" if isinstance(cell, float) else str(cell)

    cells = [list(headings)] + [[text(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    for row in cells:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip())


def main(flags, measure):
    """Runs measure(bench), which prints a table and returns figures; cleans up whatever happens."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        bench = Bench(flags)
        with bench.undo:
            print(f"{cpu_model()}, {datetime.date.today()}")
            version = bench.run([bench.binary, "--version"])[0].strip()
            figures = {"benchmark": pathlib.Path(sys.argv[0]).stem, "cpu": cpu_model(), "date": str(datetime.date.today()),
                       "version": version, **measure(bench)}
    except BenchError as error:
        print(f"{pathlib.Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    line = json.dumps(figures)
    print(line)
    if flags.json:
        flags.json.write_text(line + "\n")
    return 0
