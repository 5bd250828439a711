"""Models that do not fit in memory: budgets, streaming, checkpoints, and disks that fail."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from support import BINARY, ENVIRONMENT, MPIRUN, StoreTest, json_lines, mpirun, run

LAYERS, HIDDEN = 20, 512  # 12.6 MB a layer in f32, 252 MB in all
CONFIG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 2000, "n_positions": 256,
          "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 8, "activation_function": "gelu_new"}
IDS = " ".join(str(i * 37 % 2000) for i in range(120))
PATIENCE = 60  # seconds that a job may take to get somewhere
MB = 1_000_000


class Staging(StoreTest):
    @classmethod
    def setUpClass(cls):
        cls.shared = pathlib.Path(tempfile.mkdtemp(prefix="stagecoach-test-"))
        (cls.shared / "config.json").write_text(json.dumps(CONFIG))
        (cls.shared / "ids").write_text(IDS)
        cls.store = cls.shared / "store"
        created = run("create", cls.shared / "config.json", cls.store, "--weights", "f32", "--seed", 3, "--quiet")
        assert created.returncode == 0, created.stderr
        resident = run(*cls.score("--memory", "2GB"))
        assert resident.returncode == 0, resident.stderr
        cls.expected = json_lines(resident)[0]["logprobs"]

    @classmethod
    def score(cls, *flags, store=None):
        return ("score", "--store", store or cls.store, "--ids", cls.shared / "ids", "--json", "--quiet", *flags)

    @classmethod
    def generate(cls, *flags):
        return ("generate", "--store", cls.store, "--prompt-ids", "1 2 3 4 5", "--json", "--quiet", *flags)

    def scored(self, *flags, ranks=0, environment=None):
        process = self.succeeds(run(*self.score(*flags), ranks=ranks, environment=environment))
        return json_lines(process)[0]["logprobs"]

    def smallest(self, ranks=0):
        """The least budget, as the refusal of a smaller one names it."""
        process = run(*self.score("--memory", "10MB"), ranks=ranks)
        self.assertEqual(process.returncode, 4, process.stderr)
        return int(re.search(r"try: --memory (\d+)MB", process.stderr)[1]) * MB

    def copy_store(self):
        """Slabs that this test does not touch are links."""
        copy = self.folder / "store"
        shutil.copytree(self.store, copy, copy_function=os.link)
        return copy

    def own_slab(self, store, name):
        slab = store / name
        content = slab.read_bytes()
        slab.unlink()
        slab.write_bytes(content)
        return slab


class Budgets(Staging):
    def test_any_budget_gives_the_same_bits_and_is_kept(self):
        least = self.smallest()
        for budget in (least, least + 17 * MB, 180 * MB, 260 * MB):
            out = self.folder / "out"
            with out.open("wb") as stdout:
                process = subprocess.Popen([BINARY, *map(str, self.score("--memory", budget))], stdout=stdout,
                                           stderr=subprocess.PIPE, env=ENVIRONMENT)
                errors = process.stderr.read()
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = status
                process.stderr.close()
            self.assertEqual(status, 0, errors)
            self.assertEqual(json.loads(out.read_text())["logprobs"], self.expected)
            self.assertLessEqual(usage.ru_maxrss * 1024, budget, "the peak of the resident set")

    def test_a_budget_that_cannot_do_is_refused_with_the_one_that_can(self):
        self.fails(run(*self.score("--memory", "10MB")), 4, "10.0 MB of memory cannot hold", "largest part, the mlp", "--memory")
        self.scored("--memory", self.smallest())
        if MPIRUN:
            refused = run(*self.score("--memory", "10MB"), ranks=2)
            self.fails(refused, 4, "cannot hold")
            self.assertEqual(self.scored("--memory", self.smallest(ranks=2), ranks=2), self.expected)

    def test_sizes_are_checked(self):
        for size in ("many", "-1", "4 parsecs", ""):
            self.fails(run(*self.score("--memory", size)), 2, "--memory")

    @unittest.skipUnless(MPIRUN, "Open MPI is not installed")
    def test_rounds_and_windows(self):
        for flags in (("--rounds", 1), ("--rounds", 4), ("--rounds", 7), ("--rounds", "auto"), ("--windows", "0:9,9:12,12:20")):
            self.assertEqual(self.scored("--memory", "170MB", "--micro-batch", 33, *flags, ranks=3), self.expected, flags)
        self.fails(run(*self.score("--rounds", 8), ranks=3), 2, "3 ranks with 8 rounds need at least 22 layers")

    def test_every_way_of_reading(self):
        for way in ("io_uring", "pread", "buffered"):
            process = run(*self.score("--memory", "170MB", "--verbose"), environment={"STAGECOACH_IO": way})
            if way == "io_uring" and process.returncode == 4 and "lacks" in process.stderr:
                continue
            self.succeeds(process)
            self.assertEqual(json_lines(process)[0]["logprobs"], self.expected)
            self.assertIn("reading with " + ("io_uring, direct" if way == "io_uring" else "pread"), process.stderr)
        self.fails(run(*self.score("--memory", "170MB"), environment={"STAGECOACH_IO": "telepathy"}), 2, "telepathy")

    @unittest.skipUnless(os.geteuid() == 0, "mounting a file system needs root")
    def test_a_file_system_that_refuses_direct_reads(self):
        mount = self.folder / "ramfs"
        mount.mkdir()
        if subprocess.run(["mount", "-t", "ramfs", "none", mount], check=False, capture_output=True).returncode:
            self.skipTest("no ramfs can be mounted here")
        try:
            shutil.copytree(self.store, mount / "store")
            process = self.succeeds(run(*self.score("--memory", "170MB", store=mount / "store")))
        finally:
            subprocess.run(["umount", mount], check=True)
        self.assertEqual(process.stderr.count("refuses direct reads"), 1, process.stderr)
        self.assertEqual(json_lines(process)[0]["logprobs"], self.expected)

    def test_a_layer_is_read_once_for_all_micro_batches(self):
        layers = sum(slab.stat().st_size for slab in self.store.glob("layer-*.slab"))
        for ranks in (0, 2) if MPIRUN else (0,):
            report = self.folder / f"report-{ranks}"
            self.succeeds(run(*self.score("--memory", "170MB", "--micro-batch", 10, "--report", report), ranks=ranks))
            read = sum(rank["read_bytes"] for rank in json.loads((report / "run.json").read_text())["ranks"])
            self.assertLess(read, 1.1 * layers, "layers once, and the small ends of the model")
            self.assertGreater(read, 0.9 * layers)

    def test_an_ordinary_users_limits_are_enough(self):
        locked = subprocess.run(["sh", "-c", 'ulimit -l 64; exec "$@"', "sh", BINARY, *map(str, self.score("--memory", "170MB"))],
                                capture_output=True, text=True, env=ENVIRONMENT, check=False)
        self.assertEqual(json_lines(self.succeeds(locked))[0]["logprobs"], self.expected)

    def test_nodes_of_a_job_file(self):
        host = os.uname().nodename
        job = self.folder / "job.toml"
        job.write_text(f'[run]\nmicro_batch = 20\n[nodes."{host}"]\nmemory = "170MB"\n')
        process = run(*self.score("--job", job, "--verbose"))
        self.succeeds(process)
        self.assertIn("of 170 MB used", process.stderr)
        self.assertEqual(json_lines(process)[0]["logprobs"], self.expected)
        process = run(*self.score("--verbose"), environment={"STAGECOACH_JOB": str(job)})
        self.assertIn("of 170 MB used", self.succeeds(process).stderr)
        job.write_text('[run]\n[nodes.elsewhere]\nmemory = "170MB"\n')
        self.assertIn("names 'elsewhere', where no rank runs", self.succeeds(run(*self.score("--job", job))).stderr)
        job.write_text(f'[nodes."{host}"]\ncolour = "red"\n[run]\n')
        self.fails(run(*self.score("--job", job)), 2, "job.toml:2:", "colour")
        job.write_text(f'[run]\n[nodes."{host}"]\nmemory = "4 Gibs"\n')
        self.fails(run(*self.score("--job", job)), 2, "job.toml:3:", "4 Gibs")

    def test_time_tells_reading_from_computing(self):
        process = run("time", "--store", self.store, "--tokens", 8, "--phase", "decode", "--warmup", 1, "--repeat", 3,
                      "--memory", "150MB", "--json", "--quiet")
        rows = json_lines(self.succeeds(process))
        layers = [row for row in rows if "layer" in row]
        self.assertEqual(len(layers), LAYERS)
        streamed = [row for row in layers if row["read_ms"] > 0]
        self.assertGreater(len(streamed), LAYERS // 2)
        for row in streamed:
            self.assertGreaterEqual(row["wait_ms"], 0)
            self.assertGreater(row["compute_ms"], 0)

    def test_a_long_prompt_behind_short_ones(self):
        prompts = self.folder / "prompts"
        prompts.write_text("a\n" * 4 + "a long prompt " * 12 + "\n" + "b\n")
        flags = ("generate", "--store", self.store, "--prompts", prompts, "--max-new-tokens", 3, "--json", "--quiet", "--greedy")
        expected = [r["ids"] for r in json_lines(self.succeeds(run(*flags, "--memory", "2GB")))]
        for more in (("--max-sequences", 1), ("--max-sequences", 2, "--memory", "220MB"), ("--memory", "220MB")):
            self.assertEqual([r["ids"] for r in json_lines(self.succeeds(run(*flags, *more)))], expected, more)

    def test_many_prompts(self):
        prompts = self.folder / "prompts"
        prompts.write_text("".join(f"prompt number {i} of several\n" * (1 + i % 2) for i in range(5)))
        flags = ("generate", "--store", self.store, "--prompts", prompts, "--max-new-tokens", 6, "--json", "--quiet", "--seed", 5)
        resident = json_lines(self.succeeds(run(*flags, "--memory", "2GB")))
        for more in (("--memory", "220MB"), ("--memory", "220MB", "--max-sequences", 2), ("--memory", "220MB", "--micro-batch", 3)):
            streamed = json_lines(self.succeeds(run(*flags, *more)))
            self.assertEqual([r["ids"] for r in streamed], [r["ids"] for r in resident], more)


class PassCheckpoints(Staging):
    SLOW = ("--memory", "170MB", "--micro-batch", 3, "--threads", 1)

    def interrupt(self, command, folder, ready, number=signal.SIGINT):
        """Runs until `ready` files are in the checkpoint, then stops it."""
        process = subprocess.Popen([str(c) for c in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
        deadline = time.monotonic() + PATIENCE
        while len(list(folder.glob("layers-*.hidden")) if folder.is_dir() else []) < ready and process.poll() is None:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.002)
        process.send_signal(number)
        process.wait(PATIENCE)
        process.stderr.close()

    def windows(self, folder):
        return {p.name: p.read_bytes() for p in folder.glob("layers-*.hidden")}

    def test_an_interrupted_score_goes_on(self):
        whole = self.folder / "whole"
        self.assertEqual(self.scored(*self.SLOW, "--checkpoint", whole), self.expected)
        self.assertEqual(len(self.windows(whole)), LAYERS)
        for number in (signal.SIGINT, signal.SIGKILL):
            folder = self.folder / f"cut-{number}"
            self.interrupt([BINARY, *self.score(*self.SLOW, "--checkpoint", folder)], folder, 5, number)
            done = self.windows(folder)
            self.assertLess(len(done), LAYERS)
            self.assertEqual(done, {name: self.windows(whole)[name] for name in done}, "byte for byte")
            process = run("score", "--store", self.store, "--ids", self.shared / "ids", "--json", *self.SLOW, "--checkpoint", folder)
            self.succeeds(process)
            self.assertRegex(process.stderr, f"going on after ({len(done)}|{len(done) + 1}) of {LAYERS} layers")
            self.assertEqual(json_lines(process)[0]["logprobs"], self.expected)
            self.assertEqual(self.windows(folder), self.windows(whole))
        self.assertEqual(self.scored(*self.SLOW, "--checkpoint", whole), self.expected, "a finished one, again")

    @unittest.skipUnless(MPIRUN, "Open MPI is not installed")
    def test_a_score_goes_on_with_any_plan(self):
        folder = self.folder / "cut"
        self.interrupt(mpirun(3) + [BINARY, *self.score(*self.SLOW, "--checkpoint", folder)], folder, 5)
        done = len(self.windows(folder))
        for ranks, flags in ((2, ("--windows", "0:7,7:20")), (0, ()), (3, ("--rounds", 2, "--micro-batch", 50))):
            with self.subTest(flags):
                copy = self.folder / f"copy-{ranks}"
                shutil.copytree(folder, copy)
                command = [c for c in self.score("--memory", "170MB", "--threads", 1, *flags, "--checkpoint", copy) if c != "--quiet"]
                process = self.succeeds(run(*command, ranks=ranks))
                self.assertRegex(process.stderr, f"going on after ({done}|{done + 1}) of {LAYERS} layers")
                self.assertEqual(json_lines(process)[0]["logprobs"], self.expected)
        # Rounded on their way, they depend on who computed them.
        self.fails(run(*self.score(*self.SLOW, "--wire", "bf16", "--checkpoint", folder), ranks=3), 3, "another plan")

    @unittest.skipUnless(MPIRUN, "Open MPI is not installed")
    def test_ranks_go_on_together(self):
        folder = self.folder / "cut"
        command = self.score(*self.SLOW, "--checkpoint", folder)
        self.interrupt(mpirun(3) + [BINARY, *command], folder, 6)
        self.assertEqual(json_lines(self.succeeds(run(*command, ranks=3)))[0]["logprobs"], self.expected)

    def test_an_interrupted_text_goes_on(self):
        flags = ("--memory", "170MB", "--max-new-tokens", 30, "--seed", 7, "--temperature", "0.9")
        expected = json_lines(self.succeeds(run(*self.generate(*flags))))[0]["ids"]
        folder = self.folder / "cut"
        command = self.generate(*flags, "--checkpoint", folder)
        for drawn in (3, 9):
            process = subprocess.Popen([BINARY, *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and self.drawn(folder) < drawn:
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.002)
            process.kill()
            process.wait()
        self.assertGreaterEqual(self.drawn(folder), 9)
        self.assertEqual(json_lines(self.succeeds(run(*command)))[0]["ids"], expected)
        again = json_lines(self.succeeds(run(*command)))[0]
        self.assertEqual(again["ids"], expected, "nothing is left to do")

    @staticmethod
    def drawn(folder):
        log = folder / "tokens.json"
        return len(json.loads(log.read_text())["tokens"][0]) if log.exists() else 0

    def test_keys_and_values_come_back(self):
        for kv in ("f32", "f16", "q8"):
            flags = ("--memory", "170MB", "--max-new-tokens", 4, "--greedy", "--micro-batch", 2, "--kv", kv)
            expected = json_lines(self.succeeds(run(*self.generate(*flags))))[0]["ids"]
            folder = self.folder / f"cut-{kv}"
            command = self.generate(*flags, "--checkpoint", folder)
            self.interrupt([BINARY, *command], folder, 4, signal.SIGKILL)
            self.assertEqual(json_lines(self.succeeds(run(*command)))[0]["ids"], expected)

    def test_another_jobs_checkpoint_is_refused_by_name(self):
        folder = self.folder / "checkpoint"
        self.scored("--memory", "170MB", "--checkpoint", folder)
        before = self.windows(folder)
        (self.folder / "other").write_text("1 2 3")
        other_text = ("score", "--store", self.store, "--ids", self.folder / "other", "--memory", "170MB", "--checkpoint", folder)
        self.fails(run(*other_text), 3, "belongs to another text")
        self.fails(run(*self.score("--memory", "170MB", "--kv", "q8", "--checkpoint", folder)), 3,
                   "belongs to another KV type: expected q8, found f16")
        self.fails(run(*self.score("--memory", "170MB", "--activations", "f32", "--checkpoint", folder)), 3,
                   "belongs to another activation type: expected f32, found auto")
        other = self.folder / "model"
        self.succeeds(run("create", self.shared / "config.json", other, "--weights", "f16", "--quiet"))
        self.fails(run(*self.score("--memory", "170MB", "--checkpoint", folder, store=other)), 3, "belongs to another model")
        self.succeeds(run("create", self.shared / "config.json", self.folder / "twin", "--weights", "f32", "--seed", 4, "--quiet"))
        self.fails(run(*self.score("--memory", "170MB", "--checkpoint", folder, store=self.folder / "twin")), 3, "belongs to another model")
        self.assertEqual(self.windows(folder), before)
        self.fails(run(*self.score("--memory", "170MB", "--checkpoint", "")), 2, "--checkpoint", "expected a folder")

    @unittest.skipUnless(MPIRUN, "Open MPI is not installed")
    def test_one_rank_that_cannot_ends_all(self):
        def rank(memory):
            return ["-np", "1", BINARY, *map(str, self.score("--memory", memory, "--checkpoint", self.folder / "checkpoint"))]
        for memories in (("1GB", "10MB"), ("10MB", "1GB")):
            command = mpirun(1)[:-2] + rank(memories[0]) + [":"] + rank(memories[1])
            process = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False)
            self.fails(process, 4, "10.0 MB of memory cannot hold")
        (self.folder / "file").write_text("")
        self.fails(run(*self.score("--checkpoint", self.folder / "file" / "below"), ranks=2), 4, "cannot create")

    def test_damaged_checkpoint_files(self):
        folder = self.folder / "checkpoint"
        self.scored("--memory", "170MB", "--checkpoint", folder)
        last = folder / f"layers-{LAYERS:03}.hidden"
        content = bytearray(last.read_bytes())
        content[-5] ^= 1
        last.write_bytes(content)
        process = self.succeeds(run(*self.score("--memory", "170MB", "--checkpoint", folder)))
        self.assertEqual(process.stderr.count("is damaged"), 1, process.stderr)
        self.assertIn(last.name, process.stderr)
        self.assertEqual(json_lines(process)[0]["logprobs"], self.expected)
        last.write_bytes(content[:1000])  # cut off: as if it were not there
        self.assertEqual(self.scored("--memory", "170MB", "--checkpoint", folder), self.expected)
        (folder / "checkpoint.json").write_text("{")
        self.fails(run(*self.score("--memory", "170MB", "--checkpoint", folder)), 3, "checkpoint.json")

    def test_a_changed_token_is_noticed(self):
        folder = self.folder / "checkpoint"
        command = self.generate("--memory", "170MB", "--max-new-tokens", 4, "--greedy", "--checkpoint", folder)
        self.succeeds(run(*command))
        log = folder / "tokens.json"
        content = json.loads(log.read_text())
        content["tokens"][0][1] = (content["tokens"][0][1] + 1) % 2000
        log.write_text(json.dumps(content))
        self.fails(run(*command), 3, "tokens.json is damaged", "delete it")

    def test_two_jobs_at_once_do_not_share_a_folder(self):
        folder = self.folder / "checkpoint"
        slow = [str(c) for c in self.score(*self.SLOW, "--checkpoint", folder)]
        first = subprocess.Popen([BINARY, *slow], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
        self.addCleanup(first.wait)
        self.addCleanup(first.kill)
        deadline = time.monotonic() + PATIENCE
        while not (folder / "checkpoint.json").exists():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        self.fails(run(*slow), 2, "another job is keeping its values in")

    def test_where_nothing_can_be_written(self):
        (self.folder / "file").write_text("")
        self.fails(run(*self.score("--checkpoint", self.folder / "file" / "below")), 4, "cannot create")

    @unittest.skipUnless(os.geteuid() == 0, "mounting a small file system needs root")
    def test_a_full_disk(self):
        small, whole = self.folder / "small", self.folder / "whole"
        small.mkdir()
        self.scored("--memory", "170MB", "--checkpoint", whole)
        hidden = sum(len(content) - 64 for content in self.windows(whole).values())
        # Twice: of a disk that is too small it is known; heads of files and what a block leaves empty fill one that is just large enough.
        for size, words in ((hidden // 2, "no room for a checkpoint"), (hidden + (16 << 10), "No space left on device")):
            if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", small], check=False, capture_output=True).returncode:
                self.skipTest("no small file system can be mounted here")
            try:
                self.fails(run(*self.score("--memory", "170MB", "--checkpoint", small)), 4, words, "free some space")
                self.assertEqual(len(self.windows(small)) > 0, size > hidden, "what was finished stays")
            finally:
                subprocess.run(["umount", small], check=True)


class Faults(Staging):
    def start(self, store, *flags):
        """A streamed job that would run for hours; returns when it is under way."""
        report = self.folder / "stderr"
        with report.open("wb") as stderr:
            process = subprocess.Popen([BINARY, "time", "--store", store, "--tokens", "4", "--phase", "decode", "--repeat", "1000000",
                                        "--memory", "150MB", "--verbose", *flags], stdout=subprocess.DEVNULL, stderr=stderr, env=ENVIRONMENT)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE
        while "passes/s" not in report.read_text():
            self.assertIsNone(process.poll(), report.read_text())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)
        return process, report

    def ends(self, process, report, code, *words):
        self.assertEqual(process.wait(PATIENCE), code, report.read_text())
        for word in words:
            self.assertIn(word, report.read_text())

    def test_a_slab_truncated_while_the_job_runs(self):
        store = self.copy_store()
        slab = self.own_slab(store, "layer-001.slab")
        process, report = self.start(store)
        os.truncate(slab, 1_000_000)
        self.ends(process, report, 3, "layer-001.slab", "is truncated", "try: copy")

    def test_a_byte_altered_while_the_job_runs(self):
        store = self.copy_store()
        slab = self.own_slab(store, "layer-001.slab")
        process, report = self.start(store, "--verify", "always")
        with slab.open("r+b") as file:
            file.seek(2_000_000)
            byte = file.read(1)[0]
            file.seek(2_000_000)
            file.write(bytes([byte ^ 1]))
            os.fsync(file.fileno())
        self.ends(process, report, 3, "layer-001.slab", "is damaged")

    def test_a_slab_deleted_while_the_job_runs(self):
        store = self.copy_store()
        process, report = self.start(store)
        (store / "layer-001.slab").unlink()
        time.sleep(1)
        self.assertIsNone(process.poll(), "an open slab stays readable: " + report.read_text())

    def test_damage_found_when_a_slab_is_first_staged(self):
        store = self.copy_store()
        slab = self.own_slab(store, "layer-015.slab")
        with slab.open("r+b") as file:
            file.seek(5_000_000)
            file.write(b"damage")
        streamed = self.score("--memory", "150MB", store=store)
        self.fails(run(*streamed), 3, "layer-015.slab", "is damaged", "try: copy")
        self.succeeds(run(*streamed, "--verify", "off"))

    def test_a_missing_slab_ends_the_job_before_it_begins(self):
        store = self.copy_store()
        (store / "layer-015.slab").unlink()
        self.fails(run(*self.score("--memory", "150MB", store=store)), 3, "layer-015.slab is missing")

    def test_damaged_ends(self):
        store = self.copy_store()
        slab = self.own_slab(store, "embedding.slab")
        with slab.open("r+b") as file:
            file.seek(3_000_000)
            file.write(b"damage")
        self.fails(run(*self.score("--memory", "115MB", store=store)), 3, "embedding.slab", "is damaged")


if __name__ == "__main__":
    unittest.main()
