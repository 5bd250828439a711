"""Runs on a GPU as a user sees them. The GPU is a simulated one (tests/cuda_sim): slow, so models and texts are tiny."""

import csv
import ctypes
import json
import os
import pathlib
import re
import signal
import subprocess
import time
import unittest

from support import BINARY, ENVIRONMENT, MPIRUN, REFERENCE, TIMEOUT, StoreTest, json_lines, mpirun, run

MODULES = pathlib.Path(BINARY).resolve().parent.parent / "lib/cuda_sim"
SIMULATED = unittest.skipUnless((MODULES / "stagecoach-cuda.so").exists(), "this build has no simulated CUDA module")
# Deep enough that its layers (19 MB in f32) are worth more than what a host's least budget leaves for them.
LAYERS = 24
DEEP = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 512, "n_positions": 64, "n_embd": 128,
        "n_layer": LAYERS, "n_head": 4, "activation_function": "gelu_new"}
IDS = "5 6 7 8"
PATIENCE = 60  # seconds that a job may take to get somewhere, or to be gone
MB = 1_000_000
# What a driver that is too old has a user read, with --device cuda or auto.
TOO_OLD = "the NVIDIA driver serves CUDA 11.8, this build needs "


def simulated(**settings):
    """The environment of a run on simulated devices: devices=2, seed=7, …"""
    return {"STAGECOACH_MODULES": str(MODULES)} | {f"STAGECOACH_CUDA_SIM_{k.upper()}": str(v) for k, v in settings.items()}


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def warnings(process):
    return [line for line in process.stderr.splitlines() if " warning" in line]


def on_device(process):
    """(layers that stay on the device, all layers here, whether others pass through), as rank 0 says."""
    held, layers, copied = re.search(r"(\d+) of (\d+) layers on the device, (.+?) a pass copied to it", process.stderr).groups()
    return int(held), int(layers), copied != "0 B"


class Cuda(StoreTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.shared / "ids").write_text(IDS)
        cls.text = cls.on_cpu("generate", *cls.words(), "--quiet").stdout
        cls.two_words = cls.on_cpu("generate", *cls.words(2), "--quiet").stdout

    @classmethod
    def on_cpu(cls, command, *flags):
        process = run(command, "--store", cls.store, "--device", "cpu", *flags)
        assert process.returncode == 0, process.stderr
        return process

    @staticmethod
    def words(count=3):
        return ("--prompt", "And", "--greedy", "--max-new-tokens", count, *REFERENCE)

    def setUp(self):
        super().setUp()
        self.job = f"{os.getpid()}-{self.id()}"
        self.addCleanup(self.nothing_runs)

    def processes(self):
        """Of this test's jobs, found by their environment."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"STAGECOACH_TEST_JOB={self.job}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                pass  # gone meanwhile
        return found

    def nothing_runs(self):
        deadline = time.monotonic() + PATIENCE
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = self.processes()
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        self.assertEqual(left, [], "processes outlived their job")

    def run_simulated(self, command, *flags, ranks=0, store=None, environment=None, **settings):
        """On --device cuda, unless the flags name another."""
        device = () if "--device" in flags else ("--device", "cuda")
        return run(command, "--store", store or self.store, *flags, *device, ranks=ranks,
                   environment=simulated(**settings) | {"STAGECOACH_TEST_JOB": self.job} | (environment or {}))

    def generates(self, *flags, text=None, count=3, **options):
        """The CPU's text, on a GPU. Returns the process."""
        process = self.succeeds(self.run_simulated("generate", *self.words(count), *flags, **options))
        self.assertEqual(process.stdout, self.text if text is None else text, process.stderr)
        return process

    def least(self, flag, process):
        """The size that a refusal names as the least that would do."""
        self.assertEqual(process.returncode, 4, process.stderr)
        return int(re.search(rf"try: {flag} (\d+)MB", process.stderr)[1]) * MB

    def least_device_memory(self, **options):
        return self.least("--device-memory", self.run_simulated("generate", *self.words(), "--device-memory", "1MB", **options))


@SIMULATED
class CudaResults(Cuda):
    def test_the_text_of_the_cpu(self):
        self.assertEqual(on_device(self.generates()), (7, 7, False))

    def test_several_prompts_at_once(self):
        prompts = self.folder / "prompts"
        prompts.write_text("And\nThe\n")
        flags = ("--prompts", prompts, "--greedy", "--max-new-tokens", 2, *REFERENCE, "--json")
        alone = [r["ids"] for r in json_lines(self.on_cpu("generate", *flags))]
        self.assertEqual([r["ids"] for r in json_lines(self.succeeds(self.run_simulated("generate", *flags)))], alone)

    def test_job_file_and_environment_name_the_device(self):
        memory = f"{self.least_device_memory()}"
        job = self.folder / "job.toml"
        job.write_text(f'[run]\nstore = "{self.store}"\ndevice = "cuda"\ndevice_memory = "{memory}"\n')
        for flags, environment in ((("--job", job), {}),
                                   (("--store", self.store), {"STAGECOACH_DEVICE": "cuda:0", "STAGECOACH_DEVICE_MEMORY": memory})):
            process = self.succeeds(run("generate", *self.words(2), *flags, environment=simulated() | environment))
            self.assertEqual(on_device(process), (0, 7, True))
            self.assertEqual(process.stdout, self.two_words)

    def test_layers_stream_through_a_small_device(self):
        least = self.least_device_memory()
        held = []
        for memory in (least, least + MB, least + 3 * MB, least + 6 * MB):
            # The device is just as large: what is said to be enough is.
            process = self.generates("--device-memory", memory, count=2, text=self.two_words, memory=memory)
            count, layers, streams = on_device(process)
            self.assertEqual((layers, streams), (7, count < 7), process.stderr)
            held.append(count)
        self.assertEqual(held, sorted(held))
        self.assertEqual((held[0], held[-1]), (0, 7))
        self.assertIn(held[1], range(1, 7))

    def test_a_device_without_a_budget_is_used_for_what_it_has(self):
        everything = self.least_device_memory() + 6 * MB
        self.assertEqual(on_device(self.generates(memory=everything * 10 // 9 + MB)), (7, 7, False))

    def test_any_order_of_what_is_unordered_gives_the_same_text(self):
        memory = self.least_device_memory() + MB
        for seed in (2, 3, 4):
            self.generates("--device-memory", memory, count=2, text=self.two_words, seed=seed)

    def test_copies_from_memory_that_cannot_be_locked(self):
        self.generates("--device-memory", self.least_device_memory(), count=2, text=self.two_words,
                       faults=",".join(f"cudaHostRegister:{n}:cudaErrorMemoryAllocation" for n in range(1, 9)))

    def test_log_probabilities(self):
        flags = ("--ids", self.shared / "ids", "--json", *REFERENCE)
        (expected,) = json_lines(self.on_cpu("score", *flags))
        refused = self.run_simulated("score", *flags, "--device-memory", "1MB")
        for more in ((), ("--device-memory", self.least("--device-memory", refused))):
            (found,) = json_lines(self.succeeds(self.run_simulated("score", *flags, *more)))
            self.assertEqual(found["ids"], expected["ids"])
            self.assertIsNone(found["logprobs"][0])
            for here, there in zip(found["logprobs"][1:], expected["logprobs"][1:], strict=True):
                self.assertAlmostEqual(here, there, delta=1e-4)

    def test_a_prompt_of_many_rows(self):
        # Enough rows for cuBLAS.
        text = "In the beginning God created the heaven and the earth and the earth was without form" * 3
        flags = ("--prompt", text, "--greedy", "--max-new-tokens", 1, "--json", *REFERENCE)
        (expected,) = json_lines(self.on_cpu("generate", *flags))
        self.assertGreater(len(expected["prompt_ids"]), 32)
        (found,) = json_lines(self.succeeds(self.run_simulated("generate", *flags)))
        self.assertEqual(found["ids"], expected["ids"])


class DeepStore(Cuda):
    """A model whose layers stream from disk through the host to the device."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        (cls.shared / "config.json").write_text(json.dumps(DEEP))
        cls.deep = cls.shared / "deep"
        created = run("create", cls.shared / "config.json", cls.deep, "--weights", "f32", "--seed", 3, "--quiet")
        assert created.returncode == 0, created.stderr
        alone = run("generate", "--store", cls.deep, *cls.tokens(), "--device", "cpu", "--quiet")
        assert alone.returncode == 0, alone.stderr
        cls.expected = json_lines(alone)[0]["ids"]

    @staticmethod
    def tokens():
        return ("--prompt-ids", "1", "--greedy", "--ignore-eos", "--max-new-tokens", 2, "--json", *REFERENCE)

    def generate_deep(self, *flags, **options):
        return self.run_simulated("generate", *self.tokens(), *flags, store=self.deep, **options)

    def least_budgets(self):
        device = self.least("--device-memory", self.generate_deep("--device-memory", "1MB"))
        host = self.least("--memory", self.generate_deep("--device-memory", device, "--memory", "1MB"))
        return ("--device-memory", device, "--memory", host)


@SIMULATED
class CudaReports(DeepStore):
    def spans(self, folder):
        """Of trace.json, in the order in which they began."""
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        return sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"])

    def test_from_disk_through_the_host_to_the_device(self):
        report = self.folder / "report"
        began = time.monotonic()
        process = self.succeeds(self.generate_deep(*self.least_budgets(), "--report", report))
        microseconds = (time.monotonic() - began) * 1e6
        self.assertEqual(json_lines(process)[0]["ids"], self.expected)
        self.assertEqual(on_device(process), (0, LAYERS, True))
        in_memory, copied, from_disk = re.search(r"(\d+) of (\d+) layers in memory, (.+?) a pass from disk", process.stderr).groups()
        self.assertEqual(int(copied), LAYERS)
        self.assertLess(int(in_memory), LAYERS)
        self.assertNotEqual(from_disk, "0 B")

        spans = self.spans(report)
        for span in spans:
            self.assertGreaterEqual(span["ts"], 0)
            self.assertGreaterEqual(span["dur"], 0)
            self.assertLessEqual(span["ts"] + span["dur"], microseconds, span)
        self.assertGreater(sum(s["name"].startswith("read ") for s in spans), LAYERS)
        copies = [s for s in spans if s["name"].startswith("copy ")]
        for before, after in zip(copies, copies[1:]):  # one bus, one after the other
            self.assertLessEqual(before["ts"] + before["dur"], after["ts"] + 0.01)
        for layer in range(LAYERS):
            parts = [s for s in copies if s["name"] == f"copy {layer}"]
            small = min(s["args"]["bytes"] for s in parts)
            for kind, of_kind in (("attention", [s for s in parts if s["args"]["bytes"] == small]),
                                  ("mlp", [s for s in parts if s["args"]["bytes"] > small])):
                uses = [s for s in spans if s["name"] == f"{kind} {layer}"]
                self.assertEqual(len(uses), 2, "one a pass")
                self.assertGreaterEqual(len(of_kind), len(uses))
                for copy, use in zip(of_kind, uses):
                    self.assertLessEqual(copy["ts"] + copy["dur"], use["ts"] + use["dur"], "weights arrive before they have been used")
        with open(report / "layers.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([(int(r["layer"]), r["phase"]) for r in rows],
                         [(layer, phase) for layer in range(LAYERS) for phase in ("prefill", "decode")])
        for row in rows:
            self.assertGreater(float(row["compute_ms"]), 0)
            self.assertGreaterEqual(float(row["wait_ms"]), 0)
            self.assertGreaterEqual(float(row["read_ms"]), 0)
        summary = json.loads((report / "run.json").read_text())
        self.assertEqual([r["isa"] for r in summary["ranks"]], ["sm_86x8"])
        self.assertIn("sm_86", (report / "report.html").read_text())

    def test_a_device_does_one_thing_at_a_time(self):
        for seed in (1, 2):
            report = self.folder / f"report-{seed}"
            self.generates("--report", report, count=2, text=self.two_words, seed=seed)
            computing = [s for s in self.spans(report) if s["name"].split()[0] in ("attention", "mlp", "head")]
            self.assertEqual(len(computing), 2 * (7 + 7 + 1))
            for before, after in zip(computing, computing[1:]):
                self.assertLessEqual(before["ts"] + before["dur"], after["ts"] + 0.01, f"{before['name']} and {after['name']}")

    def test_layers_take_no_longer_than_their_pass(self):
        process = self.succeeds(self.run_simulated("time", "--tokens", 4, "--repeat", 1, "--warmup", 0, "--phase", "prefill", "--json"))
        *layers, summary = json_lines(process)
        self.assertEqual(len(layers), 7)
        self.assertLessEqual(sum(row["ms"] for row in layers), 1.001 * summary["ms"])


@SIMULATED
@unittest.skipUnless(MPIRUN, "Open MPI is not installed")
class CudaRanks(Cuda):
    def contexts(self, *flags_of_ranks, **settings):
        """A job whose ranks have flags of their own."""
        line = []
        for rank, flags in enumerate(flags_of_ranks):
            line += mpirun(1) if rank == 0 else [":", "-np", "1"]
            line += [BINARY, "generate", "--store", self.store, *self.words(), *flags]
        return subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=TIMEOUT, check=False,
                              env=ENVIRONMENT | simulated(**settings) | {"STAGECOACH_TEST_JOB": self.job})

    def with_faults_on(self, victim, faults, *flags):
        """Two ranks that would generate for long, one of them on a device that fails."""
        words = " ".join(f"'{w}'" for w in (*self.words(100), "--ignore-eos", "--verbose", *flags))
        script = (f'[ "$OMPI_COMM_WORLD_RANK" = {victim} ] && export STAGECOACH_CUDA_SIM_FAULTS={faults}; '
                  f'exec "$0" generate --store {self.store} --device cuda {words}')
        return subprocess.run(mpirun(2) + ["sh", "-c", script, BINARY], capture_output=True, text=True, timeout=TIMEOUT, check=False,
                              env=ENVIRONMENT | simulated(devices=2) | {"STAGECOACH_TEST_JOB": self.job})

    def test_two_ranks_on_two_devices(self):
        process = self.generates(ranks=2, devices=2)
        self.assertEqual(on_device(process), (4, 4, False))
        self.assertEqual(warnings(process), [])

    def test_two_ranks_whose_layers_stream(self):
        refused = self.run_simulated("generate", *self.words(), "--device-memory", "1MB", ranks=2, devices=2)
        self.fails(refused, 4, "device memory cannot hold layers 0:4", "--device-memory")
        least = self.least("--device-memory", refused)
        for flags in ((), ("--rounds", 2)):
            self.assertTrue(on_device(self.generates("--device-memory", least, *flags, ranks=2, devices=2))[2])

    def test_more_ranks_than_devices(self):
        self.generates(ranks=2, devices=1)

    def test_ranks_on_one_device_share_its_memory(self):
        process = self.generates("--verbose", ranks=2, devices=1, memory=1000 * MB)
        budget = re.search(r"layers on the device, .* of (\d+) MB used", process.stderr)[1]
        self.assertLessEqual(2 * int(budget), 1000, process.stderr)

    def test_a_rank_without_a_gpu_is_one_warning(self):
        kinds = {"cuda": "cuda (sm_86x8)", "cpu": "cpu ("}
        for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
            process = self.succeeds(self.contexts(("--device", first), ("--device", second)))
            self.assertEqual(process.stdout, self.text)
            (warning,) = warnings(process)
            for words in ("rank 1 on ", f"computes on {kinds[second]}", f" {kinds[first]}", "results depend on how layers are split"):
                self.assertIn(words, warning)

    def test_a_rank_that_gets_no_device_ends_the_job(self):
        self.fails(self.contexts(("--device", "cuda"), ("--device", "cuda:7")), 4, "rank 1 on ", "--device cuda:7: this PC has 1 GPU")
        self.fails(self.contexts(("--device", "cpu"), ("--device", "cuda"), driver=11080), 4, "rank 1 on ", TOO_OLD)
        self.fails(self.contexts(("--device", "cuda"), ("--device", "gpu")), 2, "'gpu' is no device")
        self.fails(self.run_simulated("generate", *self.words(), ranks=2, devices=0), 4, "no GPU that CUDA can use")

    def test_a_device_lost_on_one_rank_ends_all(self):
        for victim, error in ((0, "cudaErrorLaunchFailure"), (1, "cudaErrorDevicesUnavailable")):
            with self.subTest(victim=victim, error=error):
                process = self.with_faults_on(victim, f"launch:60:{error}")
                self.assertIn("all ranks are ready", process.stderr)
                self.fails(process, 4, f"rank {victim} on ", "failed on the GPU", error)
                self.nothing_runs()

    def test_a_device_lost_on_one_rank_while_its_layers_stream_ends_all(self):
        least = self.least_device_memory(ranks=2, devices=2)
        for victim, number in ((0, 40), (0, 43), (1, 41)):
            with self.subTest(victim=victim, number=number):
                process = self.with_faults_on(victim, f"cudaEventCreateWithFlags:{number}:cudaErrorDevicesUnavailable",
                                              "--device-memory", least)
                self.fails(process, 4, f"rank {victim} on ", "failed on the GPU", "cudaErrorDevicesUnavailable")


@SIMULATED
class CudaFailures(Cuda):
    def refused(self, code, *words, flags=(), **options):
        process = self.run_simulated("generate", *self.words(), *flags, **options)
        self.fails(process, code, *words)
        self.assertEqual(process.stdout, "")
        return process

    def test_devices_that_cannot_be_used(self):
        self.refused(4, "an NVIDIA driver, and no GPU that CUDA can use", "try: nvidia-smi", "--device cpu", devices=0)
        self.refused(4, "no NVIDIA driver answers", "try: nvidia-smi", "--device cpu", driver=0)
        self.refused(4, TOO_OLD, "try: install a newer driver", "--device cpu", driver=11080)
        self.refused(4, "(sm_61)", "has compute capability 6.1, this build needs 7.5 or higher", "--device cuda:N", "--device cpu",
                     capability=61)
        self.refused(4, "--device cuda:7: this PC has 1 GPU, numbered from 0", "try: nvidia-smi -L", flags=("--device", "cuda:7"))
        self.refused(4, "--device cuda:2: this PC has 2 GPUs", flags=("--device", "cuda:2"), devices=2)
        self.generates("--device", "cuda:1", devices=2)

    def test_a_driver_of_a_later_minor_or_major_version_will_do(self):
        for driver in (13020, 14000):
            process = self.generates("--quiet", count=1, text=self.on_cpu("generate", *self.words(1), "--quiet").stdout, driver=driver)
            self.assertEqual(process.stderr, "")

    def test_words_that_are_no_device(self):
        for device in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CUDA", ""):
            self.refused(2, "--device", f"'{device}' is no device: expected auto, cpu, cuda or cuda:N", flags=("--device", device))

    def test_without_the_module(self):
        self.refused(4, "the cuda module cannot be opened", "stagecoach-cuda.so", environment={"STAGECOACH_MODULES": str(self.folder)})

    def test_device_memory_that_is_too_small_or_no_size(self):
        refused = self.refused(4, "1.00 MB of device memory cannot hold layers 0:7", "one layer and the ends of the model",
                               flags=("--device-memory", "1MB"))
        least = self.least("--device-memory", refused)
        self.generates("--device-memory", least, memory=least)
        self.refused(4, "device memory cannot hold", f"try: --device-memory {least // MB}MB", flags=("--device-memory", least - MB))
        for size in ("many", "-1", ""):
            self.refused(2, "--device-memory", flags=("--device-memory", size))

    def test_a_device_with_less_memory_than_its_budget(self):
        least = self.least_device_memory()
        self.refused(4, "GPU 0 (Simulated GPU (sm_86)) has no ", " of memory left: ", " are free", "try: a smaller --device-memory",
                     flags=("--device-memory", least + 20 * MB), memory=least + MB)
        self.generates("--device-memory", least + MB, memory=least + MB)

    def test_allocations_that_fail(self):
        for number in (1, 2, 3, 12, 20, 28):
            with self.subTest(number):
                self.refused(4, "memory", "try: a smaller --device-memory", faults=f"cudaMalloc:{number}:cudaErrorMemoryAllocation")

    def fails_midway(self, *words, faults, flags=(), code=4):
        process = self.run_simulated("generate", *self.words(100), "--ignore-eos", "--verbose", *flags, faults=faults)
        self.assertIn("all ranks are ready", process.stderr)
        self.fails(process, code, *words)
        self.assertNotIn("terminate called", process.stderr)

    def test_a_device_that_fails_or_is_lost(self):
        for faults in ("launch:5:cudaErrorLaunchFailure", "launch:120:cudaErrorLaunchFailure", "launch:70:cudaErrorECCUncorrectable",
                       "launch:80:cudaErrorDevicesUnavailable", "cudaEventRecordWithFlags:60:cudaErrorDevicesUnavailable",
                       "cudaStreamSynchronize:40:cudaErrorDevicesUnavailable"):
            with self.subTest(faults):
                self.fails_midway("failed on the GPU", faults.split(":")[2], "try: nvidia-smi and dmesg", "--device cpu", faults=faults)

    def test_a_device_lost_at_any_call(self):
        for number in range(1, 400, 37):
            with self.subTest(number):
                process = self.run_simulated("generate", *self.words(2), faults=f"any:{number}:cudaErrorDevicesUnavailable")
                self.fails(process, 4, "try: nvidia-smi")

    # Events are waited for in a destructor, and made in another one: std::terminate.
    def test_a_device_that_fails_while_layers_stream(self):
        least = self.least_device_memory()
        for number in (61, 62, 63):
            with self.subTest(number):
                self.fails_midway("failed on the GPU", "cudaErrorLaunchFailure", faults=f"launch:{number}:cudaErrorLaunchFailure",
                                  flags=("--device-memory", least))

    def test_a_device_lost_while_layers_stream(self):
        least = self.least_device_memory()
        for number in (60, 61, 62, 63):
            with self.subTest(number):
                self.fails_midway("failed on the GPU", "cudaErrorDevicesUnavailable",
                                  faults=f"cudaEventCreateWithFlags:{number}:cudaErrorDevicesUnavailable", flags=("--device-memory", least))

    def test_copies_that_fail(self):
        for number, error in ((2, "cudaErrorUnknown"), (12, "cudaErrorDevicesUnavailable"), (30, "cudaErrorUnknown"),
                              (33, "cudaErrorDevicesUnavailable")):
            with self.subTest(number):
                process = self.run_simulated("generate", *self.words(100), faults=f"cudaMemcpyAsync:{number}:{error}")
                self.fails(process, 4, "failed on the GPU", error, "try: nvidia-smi")

    def test_cublas_that_fails(self):
        self.refused(4, "starting cuBLAS failed", "try: ", faults="cublasCreate:1:CUBLAS_STATUS_NOT_INITIALIZED")
        rows = "In the beginning God created the heaven and the earth and the earth was without form" * 3
        for status, hint in (("EXECUTION_FAILED", "try: nvidia-smi"), ("ALLOC_FAILED", "--device-memory")):
            process = self.run_simulated("generate", "--prompt", rows, *REFERENCE, faults=f"cublasGemmEx:3:CUBLAS_STATUS_{status}")
            self.fails(process, 4, "a matrix product failed in cuBLAS", hint)

    def test_ctrl_c_is_130(self):
        least = self.least_device_memory()
        command = [BINARY, "time", "--store", self.store, "--tokens", "4", "--repeat", "100000", "--device", "cuda", "--verbose"]
        for flags in ([], ["--device-memory", str(least)]):
            with subprocess.Popen(command + flags, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                  env=ENVIRONMENT | simulated() | {"STAGECOACH_TEST_JOB": self.job}) as process:
                self.addCleanup(process.kill)
                for line in process.stderr:
                    if "all ranks are ready" in line:
                        break
                process.send_signal(signal.SIGINT)
                _, rest = process.communicate(timeout=PATIENCE)
            self.assertEqual(process.returncode, 130, rest)
            self.assertIn("interrupted", rest)


@SIMULATED
class CudaAuto(Cuda):
    DRIVER = {"LD_LIBRARY_PATH": f"{MODULES / 'driver'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")}

    def chooses(self, *flags, environment=None, **settings):
        """The text is the CPU's, whatever the device."""
        process = self.succeeds(self.run_simulated("generate", *self.words(), *flags, environment=environment, **settings))
        self.assertEqual(process.stdout, self.text, process.stderr)
        return process

    def falls_back(self, words, **settings):
        process = self.chooses("--device", "auto", environment=self.DRIVER, **settings)
        self.assertNotIn("on the device", process.stderr)
        (warning,) = warnings(process)
        self.assertIn(f"computing on the CPU: {words}", warning)
        self.assertEqual(process.stderr.count("computing on the CPU"), 1)

    def test_a_usable_device_is_used(self):
        self.assertEqual(on_device(self.chooses("--device", "auto", environment=self.DRIVER)), (7, 7, False))
        # As without a flag.
        process = run("generate", "--store", self.store, *self.words(), environment=simulated() | self.DRIVER)
        self.assertEqual((process.returncode, on_device(process)), (0, (7, 7, False)), process.stderr)

    def test_a_driver_that_is_too_old_is_one_warning(self):
        self.falls_back(TOO_OLD, driver=11080)

    def test_no_device_or_one_that_is_too_old_is_one_warning(self):
        self.falls_back("this PC has an NVIDIA driver, and no GPU that CUDA can use", devices=0)
        self.falls_back("GPU 0 (Simulated GPU (sm_61)) has compute capability 6.1", capability=61)

    def test_the_cpu_in_silence(self):
        silent = [("--device", "cpu", self.DRIVER), ("--device", "auto", self.DRIVER | {"STAGECOACH_MODULES": str(self.folder)})]
        if not has_driver():  # this PC has no GPU
            silent.append(("--device", "auto", {}))
        for *flags, environment in silent:
            process = self.chooses(*flags, environment=environment)
            self.assertNotIn("on the device", process.stderr)
            self.assertEqual(warnings(process), [])
            self.assertEqual(self.chooses(*flags, "--quiet", environment=environment).stderr, "")


if __name__ == "__main__":
    unittest.main()
