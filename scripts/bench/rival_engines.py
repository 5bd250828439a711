"""llama.cpp and PyTorch for the benchmarks that compare: fetched from PyPI and built once into a folder, then run so
that each says what a pass takes. Stagecoach, too, so that all three are asked alike."""

import json
import os
import pathlib
import re
import resource
import shutil
import statistics
import sys
import time

from support import ROOT, BenchError, positive, run_arguments

BENCH_FOLDER = pathlib.Path(__file__).resolve().parent
TORCH_LAYER = BENCH_FOLDER / "torch_layer.py"
LLAMA_TOOLS = ("llama-bench", "llama-batched-bench")
LLAMA_OPTIONS = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_BUILD_TESTS=OFF",
                 "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_OPENSSL=OFF",
                 "-DLLAMA_BUILD_NUMBER=0"]
LLAMA_STEPS = 8  # decode steps of a repetition, of which llama.cpp says the sum
ALL_TYPES = ("f32", "f16", "bf16", "q8", "q4")
TORCH_TYPES = ("f32", "bf16")
WEIGHT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8": 34 / 32, "q4": 18 / 32}


def rival_arguments(description, **defaults):
    """The flags of benchmarks beside other engines."""
    parser = run_arguments(description, work=ROOT / "build/rivals/work", **defaults)
    parser.add_argument("--rivals-dir", type=pathlib.Path, default=ROOT / "build/rivals",
                        help="folder where llama.cpp is built and PyTorch installed, if they are not there yet")
    parser.add_argument("--llama-cpp-python", metavar="VERSION", help="release of llama-cpp-python that brings llama.cpp (default: the newest)")
    parser.add_argument("--repeat", type=positive, default=5, help="passes, of which the median counts")
    parser.add_argument("--quiet-wait", type=positive, metavar="S", help="before each engine's turn, wait up to so many seconds for other "
                                                                         "programs to leave the machine alone")
    parser.add_argument("--activations", help="passed on to stagecoach")
    parser.add_argument("--micro-batch", type=positive, help="passed on to stagecoach")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write a Markdown table to FILE, too")
    return parser


def choices(allowed):
    """A list like f32,q8, in the order of `allowed`."""
    def parse(text):
        chosen = text.split(",")
        unknown = [word for word in chosen if word not in allowed]
        if unknown:
            raise BenchError(f"'{unknown[0]}' is none of {', '.join(allowed)}", 2)
        return [word for word in allowed if word in chosen]
    return parse


def threads_of(flags):
    return flags.threads or len(os.sched_getaffinity(0))


class Passes:
    """What some passes took, in milliseconds."""

    def __init__(self, median, quarter, three_quarters, passes):
        self.ms, self.q1, self.q3, self.passes = median, quarter, three_quarters, passes

    @classmethod
    def of(cls, samples):
        if len(samples) < 2:
            return cls(samples[0], samples[0], samples[0], 1)
        quarter, median, three_quarters = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, quarter, three_quarters, len(samples))

    def figures(self):
        return {"ms": self.ms, "ms_q1": self.q1, "ms_q3": self.q3, "passes": self.passes}


class OtherPrograms:
    """How much of the machine's processor time other programs took while a run went on. Engines whose threads wait for
    each other lose far more than that share, so a comparison is worth something only where it is near 0."""

    def __init__(self):
        self.begin, self.own = self.busy(), self.own_seconds()
        self.since = time.monotonic()

    def share(self):
        """Since this object was made."""
        others = self.busy() - self.begin - (self.own_seconds() - self.own)
        return max(0.0, others / ((time.monotonic() - self.since) * os.cpu_count()))

    @staticmethod
    def busy():
        """Seconds of all cores: user, nice, system, interrupts."""
        fields = [int(field) for field in pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return (sum(fields[:3]) + sum(fields[5:7])) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def own_seconds():
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def wait_for_quiet(bench, seconds=2, quiet=0.05):
    """Until other programs leave the machine alone, or --quiet-wait is over."""
    deadline = time.monotonic() + (bench.flags.quiet_wait or 0)
    while time.monotonic() < deadline:
        others = OtherPrograms()
        time.sleep(seconds)
        if others.share() < quiet:
            return


class Stagecoach:
    name = "Stagecoach"

    def __init__(self, bench):
        self.bench, self.flags = bench, bench.flags
        self.isa = None
        # Limits of a probe of this run are for this run: those that the user keeps were measured with more care.
        self.command = ["env", f"STAGECOACH_CACHE={bench.reports}", bench.binary]

    def probe(self):
        self.bench.say("probing the machine's limits")
        stdout, _ = self.bench.run([*self.command, "probe", "--json", "--store", self.bench.work, "--threads", threads_of(self.flags)])
        return next(json.loads(line) for line in stdout.splitlines() if line.startswith("{"))

    def create(self, source, store, weights):
        self.bench.run([*self.command, "create", source, store, "--weights", weights, "--quiet"])

    def passes(self, store, phase, tokens, batch=1):
        command = [*self.command, "time", "--store", store, "--phase", phase, "--tokens", tokens, "--batch", batch, "--threads",
                   threads_of(self.flags), "--warmup", 1, "--repeat", self.flags.repeat, "--json", "--quiet"]
        for flag in ("activations", "micro_batch"):
            if getattr(self.flags, flag):
                command += ["--" + flag.replace("_", "-"), getattr(self.flags, flag)]
        stdout, _ = self.bench.run(command)
        lines = [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]
        summary = next(line for line in lines if line.get("summary"))
        self.isa = summary["isa"]
        return Passes(summary["ms"], summary["ms_q1"], summary["ms_q3"], summary["passes"])


class LlamaCpp:
    """llama.cpp from the source archive of llama-cpp-python, which carries it, built for this processor."""

    name = "llama.cpp"
    VERSION_FILE = "version.json"

    def __init__(self, bench):
        self.bench, self.flags = bench, bench.flags
        self.home = bench.flags.rivals_dir.resolve() / "llama.cpp"
        if not (self.home / self.VERSION_FILE).exists():
            self.build()
        about = json.loads((self.home / self.VERSION_FILE).read_text())
        wanted = self.flags.llama_cpp_python
        if wanted and wanted != about["llama_cpp_python"]:
            raise BenchError(f"{self.home} holds llama-cpp-python {about['llama_cpp_python']}; remove it, or name another --rivals-dir", 2)
        self.version = f"llama.cpp {about['commit']} (llama-cpp-python {about['llama_cpp_python']})"
        self.compiler = about["compiler"]

    def build(self):
        for tool in ("cmake", "c++"):
            if not shutil.which(tool):
                raise BenchError(f"building llama.cpp needs {tool}; install it, or leave llama.cpp out", 4)
        source, release = self.source()
        changes = (source / "CHANGELOG.md").read_text() if (source / "CHANGELOG.md").exists() else ""
        commit = re.search(r"llama\.cpp@([0-9a-f]{7,})", changes.partition(f"## [{release}]")[2].partition("\n## [")[0])
        commit = commit[1] if commit else "unknown"
        build = self.home / "build"
        self.bench.say(f"building llama.cpp {commit} with {threads_of(self.flags)} threads: minutes")
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        self.bench.run(["cmake", "-S", source / "vendor/llama.cpp", "-B", build, *generator, *LLAMA_OPTIONS, f"-DLLAMA_BUILD_COMMIT={commit}"])
        self.bench.run(["cmake", "--build", build, "--parallel", threads_of(self.flags), "--target", *LLAMA_TOOLS])
        compiler = self.bench.run(["c++", "--version"])[0].splitlines()[0]
        (self.home / self.VERSION_FILE).write_text(json.dumps({"llama_cpp_python": release, "commit": commit, "compiler": compiler}) + "\n")

    def source(self):
        """The unpacked archive and its release."""
        self.home.mkdir(parents=True, exist_ok=True)
        found = sorted(self.home.glob("llama_cpp_python-*/vendor/llama.cpp"))
        if not found:
            self.bench.say("fetching llama-cpp-python's source, 77 MB")
            release = f"=={self.flags.llama_cpp_python}" if self.flags.llama_cpp_python else ""
            # Of this package only: what its metadata need to be read may come as wheels.
            self.bench.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", "llama-cpp-python", "--no-deps",
                            "--dest", self.home, f"llama-cpp-python{release}"])
            for archive in self.home.glob("llama_cpp_python-*.tar.gz"):
                self.bench.run(["tar", "-xzf", archive, "-C", self.home])
                archive.unlink()
            found = sorted(self.home.glob("llama_cpp_python-*/vendor/llama.cpp"))
        if len(found) != 1:
            raise BenchError(f"{self.home}: expected one llama_cpp_python folder with vendor/llama.cpp, found {len(found)}", 3)
        return found[0].parents[1], found[0].parents[1].name.partition("-")[2]

    def bench_rows(self, tool, *arguments):
        command = [self.home / "build/bin" / tool, "--threads", threads_of(self.flags), *arguments]
        return [json.loads(line) for line in self.bench.run(command)[0].splitlines() if line.startswith("{")]

    def passes(self, model, phase, tokens, batch=1, all_rows=False):
        """A pass over a prompt, or a step after a context of `tokens` tokens. In the last layer llama.cpp leaves out the
        MLP of rows whose logits nobody wants, of a prompt all but one; with `all_rows` it computes them all."""
        if batch > 1:
            return self.batched_steps(model, tokens, batch)
        work = ["-p", tokens, "-n", 0] if phase == "prefill" else ["-p", 0, "-n", LLAMA_STEPS, "-d", tokens]
        row, = self.bench_rows("llama-bench", "-m", model, *work, "-r", self.flags.repeat, "-embd", int(all_rows),
                               "-o", "jsonl")
        steps = 1 if phase == "prefill" else LLAMA_STEPS
        return Passes.of([ns / 1e6 / steps for ns in row["samples_ns"]])

    def batched_steps(self, model, context, batch):
        """Sequences side by side. They share the prompt, so that each repetition computes it once, but each has keys
        and values of its own. The tool has no repetitions; a list of equal batches is as good. The first is the warm-up."""
        rows = self.bench_rows("llama-batched-bench", "-m", model, "-c", batch * (context + LLAMA_STEPS), "-npp", context, "-ntg", LLAMA_STEPS,
                               "-pps", "-npl", ",".join([str(batch)] * (self.flags.repeat + 1)), "--output-format", "jsonl")
        if len(rows) != self.flags.repeat + 1:
            raise BenchError(f"llama-batched-bench: expected {self.flags.repeat + 1} rows, found {len(rows)}")
        return Passes.of([1e3 * row["t_tg"] / LLAMA_STEPS for row in rows[1:]])


class PyTorch:
    """PyTorch in a virtual environment of its own."""

    name = "PyTorch"

    def __init__(self, bench, python=None):
        self.bench, self.flags = bench, bench.flags
        self.python = python or self.installed()
        found = self.bench.run([self.python, "-c", "import torch; print(torch.__version__)"], check=False)[0].strip()
        if not found:
            raise BenchError(f"{self.python} cannot import torch", 4)
        self.version = f"PyTorch {found}"

    def installed(self):
        """Its Python. What index it comes from is pip's affair (PIP_INDEX_URL and so on)."""
        home = self.flags.rivals_dir.resolve() / "venv"
        python = home / "bin/python"
        if not (python.exists() and self.bench.run([python, "-c", "import torch, numpy; print(1)"], check=False)[0]):
            self.bench.say("installing PyTorch: some GB where pip brings the build for GPUs, too")
            self.bench.run([sys.executable, "-m", "venv", home])
            self.bench.run([python, "-m", "pip", "install", "--quiet", "torch", "numpy"])
        return python

    def layer_passes(self, shape, weights, phase, tokens, batch=1):
        stdout, _ = self.bench.run([self.python, TORCH_LAYER, "--weights", weights, "--phase", phase, "--tokens", tokens, "--batch", batch,
                                    "--width", shape.width, "--heads", shape.heads, "--mlp", shape.mlp, "--repeat", self.flags.repeat,
                                    "--threads", threads_of(self.flags)])
        return Passes.of(json.loads(stdout.splitlines()[-1])["ms"])


def need_room(bench, disk, memory, what):
    """Before anything is written. Memory: what can be had without swapping."""
    free = shutil.disk_usage(bench.work).free
    if free < disk:
        raise BenchError(f"{bench.work}: {what} need {disk / 1e9:.1f} GB of disk, {free / 1e9:.1f} are free; choose smaller ones, or "
                         "another --work", 4)
    available = 0
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = 1024 * int(line.split()[1])
    if available < memory:
        raise BenchError(f"{what} need {memory / 1e9:.1f} GB of memory, {available / 1e9:.1f} are available; choose smaller ones", 4)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_whole(bench, path, write):
    """write(path) under another name, so that a file cut short is not taken for a whole one."""
    unfinished = path.with_suffix(".part")
    bench.undo.callback(remove, unfinished)
    write(unfinished)
    unfinished.rename(path)


def markdown_table(headings, rows):
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"
