"""Runs on a GPU as a user sees them. The GPU is a simulated one (tests/cuda_sim): slow, so models and texts are tiny."""

import csv
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import unittest

from support import (BINARY, ENVIRONMENT, MODULES, MPIRUN, REFERENCE, SEEDS, SIMULATED, SIMULATED_DRIVER, SOURCE, TIMEOUT, StoreTest, has_driver,
                     json_lines, mpirun, run, simulated)

# Deep enough that its layers (30 MB in f32) are worth more than what a host's least budget leaves for them, and each larger than a
# megabyte, to which least budgets are rounded up.
LAYERS = 24
DEEP = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 512, "n_positions": 64, "n_embd": 160,
        "n_layer": LAYERS, "n_head": 4, "activation_function": "gelu_new"}
IDS = "5 6 7 8"
PATIENCE = 60  # seconds that a job may take to get somewhere, or to be gone
MB = 1_000_000
# What a driver that is too old has a user read, with --device cuda or auto.
TOO_OLD = "the NVIDIA driver serves CUDA 11.8, this build needs "


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
        for seed in SEEDS:
            self.generates("--device-memory", memory, count=2, text=self.two_words, seed=seed)

    def test_copies_from_memory_that_cannot_be_locked(self):
        process = self.generates("--device-memory", self.least_device_memory(), count=2, text=self.two_words,
                                 faults=",".join(f"cudaHostRegister:{n}:cudaErrorMemoryAllocation" for n in range(1, 9)))
        (warning,) = warnings(process)
        self.assertIn("host memory cannot be page-locked (out of memory)", warning)

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
            self.assertGreater(float(row["copy_ms"]), 0)
        for split in json.loads((report / "run.json").read_text())["splits"]:
            self.assertGreater(split["ranks_detail"][0]["copied_bytes"], 0)
            self.assertGreater(split["ranks_detail"][0]["bus_gb_per_s"], 0)
        self.assertRegex(process.stderr, r"bus of rank 0 in decode: .* a pass to its GPU, ")
        summary = json.loads((report / "run.json").read_text())
        self.assertEqual([r["isa"] for r in summary["ranks"]], ["sm_86x8"])
        self.assertIn("sm_86", (report / "report.html").read_text())

    def test_bytes_of_host_and_device_stand_apart(self):
        report = self.folder / "report"
        self.generates("--report", report)
        (rank,) = json.loads((report / "run.json").read_text())["ranks"]
        self.assertEqual(rank["device"], "GPU 0 (Simulated GPU (sm_86))")
        self.assertEqual(rank["kv_bytes"], 0)
        self.assertGreater(rank["device_kv_bytes"], 0)
        # The host has the embedding and nothing else.
        self.assertGreater(rank["device_weights_bytes"], rank["weights_bytes"])
        self.assertGreater(rank["weights_bytes"], 0)
        self.assertIn("KV on GPU", (report / "report.html").read_text())
        report = self.folder / "cpu"
        self.on_cpu("generate", *self.words(), "--report", report)
        (rank,) = json.loads((report / "run.json").read_text())["ranks"]
        self.assertEqual((rank["device"], rank["device_weights_bytes"], rank["device_kv_bytes"]), ("", 0, 0))
        self.assertGreater(rank["kv_bytes"], 0)
        self.assertNotIn("KV on GPU", (report / "report.html").read_text())

    def test_the_micro_batch_of_gpus(self):
        wide = self.shared / "wide"
        if not wide.exists():
            (self.shared / "wide.json").write_text(json.dumps(DEEP | {"n_embd": 64, "n_layer": 2}))
            self.succeeds(run("create", self.shared / "wide.json", wide, "--weights", "f32", "--quiet"))

        def timed(*flags):
            return self.run_simulated("time", "--tokens", 48, "--batch", 16, "--phase", "prefill", "--repeat", 1, "--warmup", 0,
                                      *flags, "--report", self.folder / "report", store=wide)

        def micro_batch(*flags):
            self.succeeds(timed(*flags))
            return json.loads((self.folder / "report/run.json").read_text())["micro_batch"]

        self.assertEqual(micro_batch(), 1024)
        self.assertEqual(micro_batch("--micro-batch", 100), 100)
        self.assertEqual(micro_batch("--device", "cpu"), 256)
        # A device with just enough for the usual one.
        least = self.least("--device-memory", timed("--device-memory", "1MB"))
        self.assertEqual(micro_batch("--device-memory", least), 256)

    def test_a_device_does_one_thing_at_a_time(self):
        for seed in SEEDS:
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
class CudaCpuLayers(DeepStore):
    """Some layers on the processor beside the GPU."""

    def on_processor(self, process):
        found = re.search(r"(\d+) computed by the processor", process.stderr)
        return int(found[1]) if found else 0

    def test_the_text_of_the_cpu_whatever_the_number(self):
        for count in (0, 1, 3, 7):
            process = self.generates("--cpu-layers", count)
            self.assertEqual(self.on_processor(process), count)
            self.assertEqual(on_device(process), (7 - count, 7, False))
            split = [w for w in warnings(process) if "layers are computed on cuda and cpu (sm_86x8 and " in w]
            self.assertEqual(len(split), 1 if count else 0, process.stderr)

    def test_several_prompts_in_turn(self):
        # More prompts than places: sequences end on both sides, and their pages are used again.
        prompts = self.folder / "prompts"
        prompts.write_text("And\nThe\nIn the\nGod\n")
        flags = ("--prompts", prompts, "--greedy", "--max-new-tokens", 3, "--max-sequences", 2, *REFERENCE, "--json")
        alone = [r["ids"] for r in json_lines(self.on_cpu("generate", *flags))]
        process = self.succeeds(self.run_simulated("generate", *flags, "--cpu-layers", 3))
        self.assertEqual([r["ids"] for r in json_lines(process)], alone)

    def test_a_prompt_of_many_rows(self):
        text = "In the beginning God created the heaven and the earth and the earth was without form"
        flags = ("--prompt", text, "--greedy", "--max-new-tokens", 1, "--json", "--micro-batch", 24, *REFERENCE)
        (expected,) = json_lines(self.on_cpu("generate", *flags))
        (found,) = json_lines(self.succeeds(self.run_simulated("generate", *flags, "--cpu-layers", 4)))
        self.assertEqual(found["ids"], expected["ids"])

    def test_from_disk_on_the_device_and_on_the_processor(self):
        """Layers that stream from disk, that stay on the device, and that the processor computes, in one job."""
        layer = 4 * 12 * 128 * 128
        device = self.least("--device-memory", self.generate_deep("--cpu-layers", 4, "--device-memory", "1MB")) + 6 * layer
        flags = ("--cpu-layers", 4, "--device-memory", device)
        host = self.least("--memory", self.generate_deep(*flags, "--memory", "1MB"))
        report = self.folder / "report"
        for seed in SEEDS:
            process = self.succeeds(self.generate_deep(*flags, "--memory", host, "--report", report, seed=seed))
            self.assertEqual(json_lines(process)[0]["ids"], self.expected)
        self.assertEqual(self.on_processor(process), 4)
        held, layers, streams = on_device(process)
        self.assertIn(held, range(1, 12))
        self.assertEqual((layers, streams), (LAYERS, True))
        self.assertRegex(process.stderr, r"layers in memory, [1-9].* a pass from disk")
        with open(report / "layers.csv", newline="") as file:
            devices = {int(row["layer"]): row["device"] for row in csv.DictReader(file)}
        by_cpu = sorted(layer for layer, device in devices.items() if device == "cpu")
        # Spread over those that pass through the device, so that copies go on meanwhile.
        self.assertEqual(by_cpu, [5, 11, 17, 23])
        self.assertEqual(set(devices.values()), {"cpu", "cuda"})
        copied = {event["name"] for event in json.loads((report / "trace.json").read_text())["traceEvents"]
                  if event["ph"] == "X" and event["name"].startswith("copy ")}
        self.assertFalse(copied & {f"copy {layer}" for layer in by_cpu})
        self.assertIn("sm_86x8 and ", json.loads((report / "run.json").read_text())["ranks"][0]["isa"])

    def test_timings_name_the_device(self):
        process = self.succeeds(self.run_simulated("time", "--tokens", 4, "--repeat", 1, "--warmup", 0, "--json", "--cpu-layers", 2))
        rows = [row for row in json_lines(process) if "layer" in row]
        self.assertEqual({(row["layer"], row["device"]) for row in rows},
                         {(layer, "cpu" if layer >= 5 else "cuda") for layer in range(7)})

    def test_a_score_goes_on_with_the_same_split_only(self):
        ids = ("--ids", self.shared / "ids", "--json", *REFERENCE)
        (expected,) = json_lines(self.on_cpu("score", *ids))
        checkpoint = self.folder / "checkpoint"
        flags = (*ids, "--cpu-layers", 3, "--rounds", 7, "--checkpoint", checkpoint)
        (first,) = json_lines(self.succeeds(self.run_simulated("score", *flags)))
        for here, there in zip(first["logprobs"][1:], expected["logprobs"][1:], strict=True):
            self.assertAlmostEqual(here, there, delta=1e-4)
        # As if it had ended before the last layers.
        kept = sorted(checkpoint.rglob("*.hidden"))
        self.assertGreater(len(kept), 4)
        for file in kept[4:]:
            file.unlink()
        again = self.succeeds(self.run_simulated("score", *flags))
        self.assertRegex(again.stderr, r"going on after [1-6] of 7 layers")
        self.assertEqual(json_lines(again)[0]["logprobs"], first["logprobs"])
        self.fails(self.run_simulated("score", *ids, "--cpu-layers", 2, "--rounds", 7, "--checkpoint", checkpoint), 3,
                   "processor or GPU", str(checkpoint))

    def test_a_generation_goes_on_from_its_passes(self):
        checkpoint = self.folder / "checkpoint"
        flags = ("--cpu-layers", 3, "--rounds", 7, "--checkpoint", checkpoint)
        self.generates(*flags)
        kept = sorted(checkpoint.rglob("*.kv"))
        self.assertEqual(len(kept), 7)
        kept[-1].unlink()
        self.generates(*flags)

    def test_what_cannot_be(self):
        self.fails(self.run_simulated("generate", *self.words(), "--cpu-layers", 8), 2, "--cpu-layers 8: expected at most 7, for layers 0:7")
        self.fails(self.run_simulated("generate", *self.words(), "--cpu-layers", 1, "--device", "cpu"), 2,
                   "--cpu-layers 1 needs a GPU", "try: --device cuda")
        for count in ("-1", "x", "1.5", ""):
            self.fails(self.run_simulated("generate", *self.words(), "--cpu-layers", count), 2, "--cpu-layers",
                       f"'{count}' is no number of layers: expected 0 or more, or auto")
        self.succeeds(self.run_simulated("generate", *self.words(1), "--cpu-layers", 0, "--device", "cpu"))

    def test_budgets_are_as_large_as_is_said(self):
        refused = self.run_simulated("generate", *self.words(), "--cpu-layers", 7, "--device-memory", "1MB")
        device = self.least("--device-memory", refused)
        self.assertLess(device, self.least_device_memory())
        self.generates("--cpu-layers", 7, "--device-memory", device, memory=device)
        flags = ("--cpu-layers", 5, "--device-memory", self.least_device_memory())
        host = self.least("--memory", self.run_simulated("generate", *self.words(), *flags, "--memory", "1MB"))
        self.generates(*flags, "--memory", host)
        self.fails(self.run_simulated("generate", *self.words(), *flags, "--memory", host - 16 * MB), 4, "cannot hold layers 0:7")

    def test_as_many_as_make_the_job_shorter(self):
        cache = self.folder / "cache"
        environment = {"STAGECOACH_CACHE": str(cache)}
        tight = ("--device-memory", self.least_device_memory() + MB)
        self.assertEqual(self.on_processor(self.generates(*tight, environment=environment)), 0, "nothing is known of this machine")
        self.succeeds(run("probe", "--quick", environment=environment))
        limits = json.loads((cache / "limits.json").read_text())

        def chosen(gigabytes, *flags):
            limits["memory_bytes_per_second"] = {"one_thread": gigabytes * 1e9, "all_threads": gigabytes * 1e9}
            for name in ("f32", "bf16", "int8"):
                limits[f"{name}_operations_per_second"] |= {"one_thread": 1e13, "all_threads": 1e13}
            (cache / "limits.json").write_text(json.dumps(limits))
            return self.on_processor(self.generates(*flags, environment=environment))

        self.assertEqual(chosen(0.1, *tight), 0)
        passing = 7 - on_device(self.generates(*tight))[0]
        self.assertEqual(chosen(1000, *tight), passing)
        self.assertEqual(chosen(1000), 0, "all layers are on the device")
        self.assertEqual(chosen(1000, *tight, "--cpu-layers", 1), 1)
        # A checkpoint of passes fits one split only, and memory may be another when it is read.
        self.assertEqual(chosen(1000, *tight, "--checkpoint", self.folder / "kept"), 0)

    def test_a_checkpoint_of_the_processor_is_refused_by_name(self):
        folder = self.folder / "kept"
        self.on_cpu("generate", *self.words(), "--checkpoint", folder)
        self.fails(self.run_simulated("generate", *self.words(), "--checkpoint", folder), 3,
                   "belongs to another processor or GPU: expected GPU sm_86")

    def test_heads_that_attention_on_a_gpu_does_not_take(self):
        (self.folder / "config.json").write_text(json.dumps(DEEP | {"n_embd": 512, "n_head": 1, "n_layer": 2}))
        store = self.folder / "wide"
        self.succeeds(run("create", self.folder / "config.json", store, "--weights", "f32", "--seed", 3, "--quiet"))
        words = "the model's heads have 512 dimensions: attention on a GPU takes 256 at most"
        self.fails(self.run_simulated("generate", *self.tokens(), store=store), 4, words, "try: --device cpu")
        process = self.succeeds(self.run_simulated("generate", *self.tokens(), "--device", "auto", store=store,
                                                   environment=SIMULATED_DRIVER))
        (warning,) = warnings(process)
        self.assertIn(f"computing on the CPU: {words}", warning)
        cluster = self.folder / "cluster.toml"
        cluster.write_text('[nodes.pc]\nmemory = "2GB"\ndevice_memory = "2GB"\ndevice_gb_per_s = 360.0\ndevice_gflop_per_s = 50000.0\n'
                           "bus_gb_per_s = 12.0\nmemory_gb_per_s = 30\nf32_gflop_per_s = 200\nbf16_gflop_per_s = 200\n"
                           "int8_gop_per_s = 400\ndisk_gb_per_s = 1\n")
        self.fails(run("plan", "--store", store, "--cluster", cluster, "--tokens", 8, "--new-tokens", 8), 4,
                   "heads of 256 dimensions at most: the model's have 512", "leave device_memory out of nodes.pc")


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

    def with_faults_on(self, victim, faults, *flags, seed):
        """Two ranks that would generate for long, one of them on a device that fails."""
        words = " ".join(f"'{w}'" for w in (*self.words(100), "--ignore-eos", "--verbose", *flags))
        script = (f'[ "$OMPI_COMM_WORLD_RANK" = {victim} ] && export STAGECOACH_CUDA_SIM_FAULTS={faults}; '
                  f'exec "$0" generate --store {self.store} --device cuda {words}')
        return subprocess.run(mpirun(2) + ["sh", "-c", script, BINARY], capture_output=True, text=True, timeout=TIMEOUT, check=False,
                              env=ENVIRONMENT | simulated(devices=2, seed=seed) | {"STAGECOACH_TEST_JOB": self.job})

    def example(self, name, ranks, *flags):
        """A job file of configs/jobs, run where it says for a few tokens of the small model: what one rank on the CPU writes, and what
        ranks write that have a GPU each."""
        report = self.folder / name
        command = [BINARY, "generate", "--job", f"configs/jobs/{name}.toml", "--store", self.store, "--max-new-tokens", 2, "--seed", 5,
                   *REFERENCE, *flags]
        processes = []
        for line in ([*command, "--device", "cpu"], [*mpirun(ranks), *command, "--device-memory", "1GB", "--report", report]):
            process = subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=TIMEOUT, check=False, cwd=SOURCE,
                                     env=ENVIRONMENT | simulated(devices=ranks) | {"STAGECOACH_TEST_JOB": self.job})
            processes.append(self.succeeds(process))
        devices = [(rank["rank"], rank["device"]) for rank in json.loads((report / "run.json").read_text())["ranks"]]
        self.assertEqual(devices, [(rank, f"GPU {rank} (Simulated GPU (sm_86))") for rank in range(ranks)])
        return processes

    def test_a_word_that_is_none_is_refused_before_mpi_starts(self):
        process = run("generate", "--store", self.store, *self.words(), ranks=2, environment={"STAGECOACH_CUDA_AWARE_MPI": "maybe"})
        self.assertEqual(process.returncode, 2, process.stderr)
        self.assertIn("STAGECOACH_CUDA_AWARE_MPI is 'maybe', not on or off", process.stderr)
        self.assertNotIn("MPI_Init", process.stderr)

    def test_the_example_of_several_gpus(self):
        alone, together = self.example("gptj-several-gpus", 2)
        self.assertTrue(alone.stdout.strip())
        self.assertEqual(together.stdout, alone.stdout)

    def test_the_example_of_several_gpus_with_8_prompts(self):
        alone, together = map(json_lines, self.example("gptj-several-gpus-8-prompts", 4, "--json"))
        self.assertEqual(len(alone), 8)
        self.assertEqual([r["ids"] for r in together], [r["ids"] for r in alone])

    def test_four_ranks_on_four_devices(self):
        self.assertEqual(on_device(self.generates(ranks=4, devices=4)), (1, 1, False))

    def test_four_ranks_whose_layers_stream(self):
        windows = ("--windows", "0:4,4:5,5:6,6:7")
        least = self.least("--device-memory", self.run_simulated("generate", *self.words(), *windows, "--device-memory", "1MB",
                                                                 ranks=4, devices=4))
        for seed in SEEDS:
            process = self.generates(*windows, "--device-memory", least, ranks=4, devices=4, seed=seed)
            self.assertEqual(on_device(process), (0, 4, True))

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

    def test_layers_of_the_processor_on_several_ranks(self):
        for flags in ((), ("--rounds", 2), ("--windows", "0:1,1:7")):
            count = 1 if "0:1,1:7" in flags else 2
            process = self.generates("--cpu-layers", count, *flags, ranks=2, devices=2)
            (warning,) = warnings(process)
            self.assertRegex(warning, r"rank 0 on \S+: computes on cuda and cpu \(sm_86x8 and .*results depend on how layers are split")
        self.fails(self.run_simulated("generate", *self.words(), "--cpu-layers", 2, "--windows", "0:1,1:7", ranks=2, devices=2), 2,
                   "--cpu-layers 2: expected at most 1, for layers 0:1")

    def test_layers_of_the_processor_that_stream_beside_others(self):
        refused = self.run_simulated("generate", *self.words(), "--cpu-layers", 1, "--device-memory", "1MB", ranks=2, devices=2)
        least = self.least("--device-memory", refused)
        for flags in ((), ("--rounds", 2)):
            self.assertTrue(on_device(self.generates("--cpu-layers", 1, "--device-memory", least, *flags, ranks=2, devices=2))[2])

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

    def test_ranks_agree_on_a_micro_batch(self):
        for second, rows in (("cuda", 1024), ("cpu", 256)):
            report = self.folder / second
            self.succeeds(self.contexts(("--device", "cuda", "--report", report), ("--device", second, "--report", report)))
            self.assertEqual(json.loads((report / "run.json").read_text())["micro_batch"], rows)

    def test_a_rank_that_gets_no_device_ends_the_job(self):
        self.fails(self.contexts(("--device", "cuda:7"), ("--device", "cuda")), 4, "rank 0 on ", "--device cuda:7: this PC has 1 GPU")
        self.fails(self.contexts(("--device", "cuda"), ("--device", "cuda:7")), 4, "rank 1 on ", "--device cuda:7: this PC has 1 GPU")
        self.fails(self.contexts(("--device", "cpu"), ("--device", "cuda"), driver=11080), 4, "rank 1 on ", TOO_OLD)
        self.fails(self.contexts(("--device", "cuda"), ("--device", "gpu")), 2, "'gpu' is no device")
        self.fails(self.run_simulated("generate", *self.words(), ranks=2, devices=0), 4, "no GPU that CUDA can use")

    def test_a_device_lost_on_one_rank_ends_all(self):
        for seed, (victim, error) in itertools.product(SEEDS, ((0, "cudaErrorLaunchFailure"), (1, "cudaErrorDevicesUnavailable"))):
            with self.subTest(victim=victim, error=error, seed=seed):
                process = self.with_faults_on(victim, f"launch:60:{error}", seed=seed)
                self.assertIn("all ranks are ready", process.stderr)
                self.fails(process, 4, f"rank {victim} on ", "failed on the GPU", error)
                self.nothing_runs()

    def test_a_device_lost_on_one_rank_while_its_layers_stream_ends_all(self):
        least = self.least_device_memory(ranks=2, devices=2)
        for seed, (victim, number) in itertools.product(SEEDS, ((0, 40), (0, 43), (1, 41))):
            with self.subTest(victim=victim, number=number, seed=seed):
                process = self.with_faults_on(victim, f"cudaEventCreateWithFlags:{number}:cudaErrorDevicesUnavailable",
                                              "--device-memory", least, seed=seed)
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
        for device in ("a\nb\x1b[2J", "x" * 5000):
            process = self.refused(2, "is no device", flags=("--device", device))
            self.assertLess(len(process.stderr), 400)
            self.assertNotIn("\x1b", process.stderr)

    def test_without_the_module(self):
        self.refused(4, "the cuda module cannot be opened", "stagecoach-cuda.so", environment={"STAGECOACH_MODULES": str(self.folder)})

    def test_a_module_that_is_damaged_or_something_else(self):
        module = self.folder / "stagecoach-cuda.so"
        whole = (MODULES / "stagecoach-cuda.so").read_bytes()
        here = {"STAGECOACH_MODULES": str(self.folder)}
        foreign = MODULES / "driver/libcuda.so.1"

        def is_refused(*words):
            self.refused(4, module, *words, "try: copy lib/stagecoach again", environment=here)
            process = self.succeeds(self.run_simulated("generate", *self.words(1), "--device", "auto", environment=here | SIMULATED_DRIVER))
            (warning,) = warnings(process)
            self.assertIn("computing on the CPU: ", warning)
            self.assertIn(str(module), warning)

        for size in (200000, len(whole) - 1):  # dlopen would map what is not there: SIGBUS
            module.write_bytes(whole[:size])
            is_refused("the cuda module cannot be opened", f"truncated: expected {len(whole)} bytes, found {size}")
        for content in (b"", b"text\n", whole[:10]):
            module.write_bytes(content)
            is_refused("expected a shared object")
        shutil.copy(foreign, module)
        is_refused("is no CUDA module of Stagecoach")
        module.unlink()
        os.mkfifo(module)
        is_refused("expected a regular file")
        module.unlink()
        module.mkdir()
        is_refused("expected a regular file")

    def test_a_study_ends_with_its_device(self):
        flags = ("--tokens", "4,8,16", "--repeat", 1, "--warmup", 0)
        for faults in ("launch:60:cudaErrorLaunchFailure", "cudaMemGetInfo:1:cudaErrorDevicesUnavailable"):
            self.fails(self.run_simulated("time", *flags, faults=faults), 4, "failed on the GPU")
        table = self.folder / "table"
        table.mkdir()
        for csv, what in ((table, table), ("/proc/none/table.csv", "/proc/none")):
            self.fails(run("time", "--store", self.store, *flags, "--device", "cpu", "--csv", csv), 4, what, "try: ")

    def test_device_memory_that_is_too_small_or_no_size(self):
        refused = self.refused(4, "1.00 MB of device memory cannot hold layers 0:7", "one layer and the ends of the model",
                               flags=("--device-memory", "1MB"))
        least = self.least("--device-memory", refused)
        self.generates("--device-memory", least, memory=least)
        self.refused(4, "device memory cannot hold", f"try: --device-memory {least // MB}MB", flags=("--device-memory", least - MB))
        for size in ("many", "-1", ""):
            self.refused(2, "--device-memory", "write it like 8GiB, 500MB or 4096", flags=("--device-memory", size))
        self.refused(2, "--device-memory is of a GPU", flags=("--device-memory", "1GB", "--device", "cpu"))
        job = self.folder / "job.toml"
        job.write_text(f'[run]\nstore = "{self.store}"\ndevice_memory = "1GB"\n')
        self.generates("--job", job, "--device", "cpu")  # of other PCs that the file is for
        job.write_text(f'[run]\nstore = "{self.store}"\ndevice_memory = "1GB"\ndevice = "cpu"\n')
        self.fails(run("generate", "--job", job, *self.words()), 2, "--device-memory is of a GPU")

    def test_a_device_with_less_memory_than_its_budget(self):
        least = self.least_device_memory()
        for device in ("cuda", "auto"):
            self.refused(4, "GPU 0 (Simulated GPU (sm_86)) has ", " of memory free: expected ", "--device-memory of ",
                         "try: a smaller --device-memory: ", flags=("--device-memory", least + 20 * MB, "--device", device),
                         environment=SIMULATED_DRIVER, memory=least + MB)
        self.generates("--device-memory", least + MB, memory=least + MB)
        # A budget above what the job needs is no promise.
        self.generates("--device-memory", "1GB", memory=least + 20 * MB)

    def test_allocations_that_fail(self):
        for seed, number in itertools.product(SEEDS, (1, 2, 3, 12, 20, 28)):
            with self.subTest(number=number, seed=seed):
                self.refused(4, "memory", "try: a smaller --device-memory", faults=f"cudaMalloc:{number}:cudaErrorMemoryAllocation",
                             seed=seed)

    def fails_midway(self, *words, faults, seed, flags=(), code=4):
        process = self.run_simulated("generate", *self.words(100), "--ignore-eos", "--verbose", *flags, faults=faults, seed=seed)
        self.assertIn("all ranks are ready", process.stderr)
        self.fails(process, code, *words)
        self.assertNotIn("terminate called", process.stderr)

    def test_a_device_that_fails_or_is_lost(self):
        all_faults = ("launch:40:cudaErrorLaunchFailure", "launch:120:cudaErrorLaunchFailure", "launch:70:cudaErrorECCUncorrectable",
                      "launch:80:cudaErrorDevicesUnavailable", "cudaEventRecordWithFlags:60:cudaErrorDevicesUnavailable",
                      "cudaStreamSynchronize:40:cudaErrorDevicesUnavailable")
        for seed, faults in itertools.product(SEEDS, all_faults):
            with self.subTest(faults, seed=seed):
                self.fails_midway("failed on the GPU", faults.split(":")[2], "try: nvidia-smi and dmesg", "--device cpu", faults=faults,
                                  seed=seed)

    def test_a_device_lost_at_any_call(self):
        for seed, number in itertools.product(SEEDS, range(1, 400, 37)):
            with self.subTest(number=number, seed=seed):
                process = self.run_simulated("generate", *self.words(2), faults=f"any:{number}:cudaErrorDevicesUnavailable", seed=seed)
                self.fails(process, 4, "try: nvidia-smi")

    # Events are waited for in a destructor, and made in another one: std::terminate.
    def test_a_device_that_fails_while_layers_stream(self):
        least = self.least_device_memory()
        for seed, number in itertools.product(SEEDS, (61, 62, 63)):
            with self.subTest(number=number, seed=seed):
                self.fails_midway("failed on the GPU", "cudaErrorLaunchFailure", faults=f"launch:{number}:cudaErrorLaunchFailure",
                                  flags=("--device-memory", least), seed=seed)

    def test_a_device_lost_while_layers_stream(self):
        least = self.least_device_memory()
        for seed, number in itertools.product(SEEDS, (60, 61, 62, 63)):
            with self.subTest(number=number, seed=seed):
                self.fails_midway("failed on the GPU", "cudaErrorDevicesUnavailable", seed=seed,
                                  faults=f"cudaEventCreateWithFlags:{number}:cudaErrorDevicesUnavailable", flags=("--device-memory", least))

    def test_copies_that_fail(self):
        all_faults = ((2, "cudaErrorUnknown"), (12, "cudaErrorDevicesUnavailable"), (30, "cudaErrorUnknown"),
                      (33, "cudaErrorDevicesUnavailable"))
        for seed, (number, error) in itertools.product(SEEDS, all_faults):
            with self.subTest(number=number, seed=seed):
                process = self.run_simulated("generate", *self.words(100), faults=f"cudaMemcpyAsync:{number}:{error}", seed=seed)
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
    def chooses(self, *flags, environment=None, **settings):
        """The text is the CPU's, whatever the device."""
        process = self.succeeds(self.run_simulated("generate", *self.words(), *flags, environment=environment, **settings))
        self.assertEqual(process.stdout, self.text, process.stderr)
        return process

    def falls_back(self, words, **settings):
        process = self.chooses("--device", "auto", environment=SIMULATED_DRIVER, **settings)
        self.assertNotIn("on the device", process.stderr)
        (warning,) = warnings(process)
        self.assertIn(f"computing on the CPU: {words}", warning)
        self.assertEqual(process.stderr.count("computing on the CPU"), 1)

    def test_a_usable_device_is_used(self):
        self.assertEqual(on_device(self.chooses("--device", "auto", environment=SIMULATED_DRIVER)), (7, 7, False))
        # As without a flag.
        process = run("generate", "--store", self.store, *self.words(), environment=simulated() | SIMULATED_DRIVER)
        self.assertEqual((process.returncode, on_device(process)), (0, (7, 7, False)), process.stderr)

    def test_a_driver_that_is_too_old_is_one_warning(self):
        self.falls_back(TOO_OLD, driver=11080)

    def test_no_device_or_one_that_is_too_old_is_one_warning(self):
        self.falls_back("this PC has an NVIDIA driver, and no GPU that CUDA can use", devices=0)
        self.falls_back("GPU 0 (Simulated GPU (sm_61)) has compute capability 6.1", capability=61)

    def test_a_build_without_the_module_is_one_warning(self):
        empty = self.folder / "no-modules"
        empty.mkdir()
        process = run("generate", "--store", self.store, *self.words(), environment=SIMULATED_DRIVER | {"STAGECOACH_MODULES": str(empty)})
        self.assertEqual((process.returncode, process.stdout), (0, self.text), process.stderr)
        (warning,) = warnings(process)
        self.assertIn("computing on the CPU: this PC has an NVIDIA driver, and this build of Stagecoach no CUDA module", warning)

    def test_what_is_no_lack_of_a_device_ends_the_job(self):
        auto = ("generate", *self.words(), "--device", "auto")
        self.fails(self.run_simulated(*auto, environment=SIMULATED_DRIVER | {"STAGECOACH_CUDA_GRAPHS": "maybe"}), 2,
                   "STAGECOACH_CUDA_GRAPHS is 'maybe', not on or off")
        self.fails(self.run_simulated(*auto, environment=SIMULATED_DRIVER, faults="cudaStreamCreateWithFlags:1:cudaErrorInvalidValue"), 1,
                   "creating a stream failed on the GPU")

    def test_a_device_that_is_too_small_is_one_warning(self):
        process = self.chooses("--device", "auto", "--device-memory", "1MB", environment=SIMULATED_DRIVER)
        self.assertNotIn("on the device", process.stderr)
        (warning,) = warnings(process)
        self.assertIn("computing on the CPU: 1.00 MB of device memory cannot hold layers 0:7", warning)
        # Who wants layers beside a GPU wants the GPU.
        self.fails(self.run_simulated("generate", *self.words(), "--device", "auto", "--device-memory", "1MB", "--cpu-layers", 1,
                                      environment=SIMULATED_DRIVER), 4, "1.00 MB of device memory cannot hold")

    def test_a_device_that_opens_and_does_not_answer_is_one_warning(self):
        self.falls_back("asking for free memory failed", faults="cudaMemGetInfo:1:cudaErrorDevicesUnavailable")

    @unittest.skipIf(has_driver(), "this PC has a driver")
    def test_a_budget_for_a_gpu_where_there_is_none_is_one_warning(self):
        process = self.chooses("--device", "auto", "--device-memory", "1GB")
        (warning,) = warnings(process)
        self.assertIn("--device-memory 1GB: this PC has no GPU", warning)

    @unittest.skipUnless(MPIRUN, "Open MPI is not installed")
    def test_ranks_of_one_host_warn_once(self):
        self.falls_back(TOO_OLD, driver=11080, ranks=3)

    def test_the_cpu_in_silence(self):
        silent = [("--device", "cpu", SIMULATED_DRIVER)]
        if not has_driver():  # this PC has no GPU
            silent.append(("--device", "auto", {}))
        for *flags, environment in silent:
            process = self.chooses(*flags, environment=environment)
            self.assertNotIn("on the device", process.stderr)
            self.assertEqual(warnings(process), [])
            self.assertEqual(self.chooses(*flags, "--quiet", environment=environment).stderr, "")


if __name__ == "__main__":
    unittest.main()
