"""launch, doctor and agent on this machine alone; tests/lan has them on several."""

import json
import os
import shutil
import signal
import socket
import subprocess
import unittest

from support import BINARY, ENVIRONMENT, MPIRUN, SOURCE, TIMEOUT, StoreTest, json_lines, run


class Launch(StoreTest):
    def setUp(self):
        super().setUp()
        self.environment = {"HOME": str(self.folder)}  # for keys, states and caches

    def job(self, text, node="address = \"127.0.0.1\"\nmemory = \"1GB\"\n"):
        file = self.folder / "job.toml"
        file.write_text(text.replace("STORE", str(self.store)) + f"[nodes.here]\n{node}")
        return file

    def run_here(self, *arguments):
        return run(*arguments, environment=self.environment)

    RUN = '[run]\nstore = "STORE"\nprompt = "In the beginning"\nmax_new_tokens = 6\ngreedy = true\njson = true\nwindows = "0:7"\n'

    @unittest.skipIf(MPIRUN is None, "Open MPI is not installed")
    def test_one_host_is_a_cluster_too(self):
        launched = self.succeeds(self.run_here("launch", self.job(self.RUN + f'report = "{self.folder}/report"\n')))
        alone = self.succeeds(run("generate", "--store", self.store, "--prompt", "In the beginning", "--max-new-tokens", "6", "--greedy", "--json", "--quiet"))
        self.assertEqual(json_lines(launched)[0]["ids"], json_lines(alone)[0]["ids"])
        self.assertTrue((self.folder / "report/run.json").exists())
        left = [path for path in (self.folder / ".local/state/stagecoach").rglob("*") if path.is_file()]
        self.assertEqual(left, [], "files of the launch are left")

    @unittest.skipIf(MPIRUN is None, "Open MPI is not installed")
    def test_a_dry_run_says_what_would_be_run(self):
        plan = json.loads(self.succeeds(self.run_here("launch", self.job(self.RUN), "--dry-run", "--json")).stdout)
        self.assertEqual(plan["windows"], "0:7")
        self.assertEqual(plan["ranks"][0]["bytes_to_ship"], 0)
        self.assertEqual(plan["hostfile"], "127.0.0.1 slots=1\n")
        self.assertEqual(plan["rankfile"], "rank 0=127.0.0.1 slot=*\n")
        self.assertEqual(plan["command"][0], "mpirun")
        self.assertIn("--prompt=In the beginning", plan["command"])
        text = self.succeeds(self.run_here("launch", self.job(self.RUN), "--dry-run")).stdout
        self.assertIn("mpirun --oversubscribe --bind-to none", text)
        self.assertIn("here has all of its slabs", text)

    @unittest.skipIf(MPIRUN is None, "Open MPI is not installed")
    def test_an_error_of_the_ranks_is_said_once(self):
        for flags in ((), ("--quiet",)):
            self.fails(self.run_here("launch", self.job(self.RUN.replace('prompt = "In the beginning"', 'prompt_ids = "1 99999"')), *flags), 2,
                       "99999 is outside the vocabulary")

    @unittest.skipIf(MPIRUN is None, "Open MPI is not installed")
    def test_hosts_without_rates_are_measured(self):
        # Without windows there is something to plan.
        launched = self.succeeds(self.run_here("launch", self.job(self.RUN.replace('windows = "0:7"\n', ""))))
        self.assertIn("measuring how fast it is", launched.stderr)
        again = self.succeeds(self.run_here("launch", self.job(self.RUN.replace('windows = "0:7"\n', ""))))
        self.assertNotIn("measuring", again.stderr)

    def test_mistakes_in_the_file_have_their_place(self):
        for text, place in ((self.RUN.replace("greedy = true", "greedly = true"), "job.toml:5:11: 'greedly' is not a setting of stagecoach generate"),
                            (self.RUN.replace("max_new_tokens = 6", 'max_new_tokens = "six"'), "job.toml:4:18: max_new_tokens"),
                            ('[launch]\ncommand = "import"\n' + self.RUN, "job.toml:2:11: launch.command"),
                            (self.RUN.replace('windows = "0:7"', "rounds = 2"), "launch plans rounds"),
                            (self.RUN.replace('prompt = "In the beginning"', 'prompts = "-"'), "read it twice"),
                            ('[launch]\nreplicas = 2\n' + self.RUN + f'checkpoint = "{self.folder}/c"\n', "run.checkpoint and launch.replicas"),
                            (self.RUN.replace('store = "STORE"\n', ""), "run.store is missing"),
                            (self.RUN.replace("In the beginning", "a\\u0000b"), "job.toml:3:10: a zero byte"),
                            (self.RUN + "[run" + ".a" * 50000 + "]\n", "dots and brackets"),
                            (self.RUN.replace("max_new_tokens = 6", "temperature = -1"), "temperature"),
                            (self.RUN + 'prompts = "job.toml"\n', "takes exactly one of --prompt, --prompts, --prompt-ids; found 2"),
                            (self.RUN + 'chat = true\nno_bos = true\n', "--chat and --no-bos"),
                            ('[launch]\ncommand = "score"\n[run]\nstore = "STORE"\n', "takes exactly one of --text, --ids; found 0"),
                            ('[launch]\ncommand = "time"\n[run]\nstore = "STORE"\n', "needs --tokens"),
                            ('[launch]\nreplicas = 2\n' + self.RUN, "replicas = 2 needs two hosts")):
            # Whatever looks at the file says the same of it.
            for command in (("launch",), ("launch", "--dry-run"), ("doctor", "--quick")):
                with self.subTest(place, command=command):
                    refused = self.run_here(*command, self.job(text))
                    self.fails(refused, 2, place)
                    if "job.toml:" in place and "zero byte" not in place:
                        self.assertIn("try: ", refused.stderr)
        self.fails(self.run_here("launch", self.job(self.RUN.replace("greedy = true", "greedly = true"))), 2, "try: greedy; stagecoach generate --help")
        node = 'address = "127.0.0.1"\nmemory = "2GB"\n'
        for setting, *words in (("memory_gb_per_s = -3", "expected a number above 0, found '-3'"), ('device_memory = "abc"', "'abc' is not a size", "write it like 8GiB"),
                                ("disk_gb_per_s = [1]", "expected a number above 0, found a list")):
            self.fails(self.run_here("launch", self.job(self.RUN, f"{node}{setting}\n")), 2, *words, "try: docs/planning.md")
        self.fails(self.run_here("launch", self.folder / "none.toml"), 2, "none.toml")
        self.fails(self.run_here("launch"), 2)

    @unittest.skipIf(MPIRUN is None, "Open MPI is not installed")
    def test_a_tilde_is_the_users_home(self):
        (self.folder / "texts").mkdir()
        (self.folder / "texts/prompts.txt").write_text("In the beginning\n")
        text = self.RUN.replace('prompt = "In the beginning"', 'prompts = "~/texts/prompts.txt"') + 'report = "~/report"\n'
        text = text.replace('"STORE"', f'"~/{self.store.name}"')
        (self.folder / self.store.name).symlink_to(self.store)
        self.succeeds(self.run_here("launch", self.job(text)))
        self.assertTrue((self.folder / "report/run.json").exists())
        # The same file by hand.
        shutil.rmtree(self.folder / "report")
        self.succeeds(self.run_here("generate", "--job", self.folder / "job.toml"))
        self.assertTrue((self.folder / "report/run.json").exists())
        self.fails(self.run_here("launch", self.job(self.RUN, node='address = "127.0.0.1"\nstore = "~other/x"\n')), 2, "job.toml:10:9: nodes.here.store",
                   "absolute path")

    @unittest.skipIf(MPIRUN is None, "Open MPI is not installed")
    def test_what_killed_launches_left_is_swept(self):
        state = self.folder / ".local/state/stagecoach"
        old, fresh, others = "20200101-000000-1", "20200101-000000-2", "2020-run"  # the last one is none of ours
        for name in (old, fresh, others):
            for folder in (state / "launches" / name, state / "jobs" / f"{name}@0"):
                folder.mkdir(parents=True)
                (folder / "session.json").write_text("{}")
                (folder / "lock").touch()
        for folder in (state / "launches" / old, state / "jobs" / f"{old}@0", state / "launches" / others, state / "jobs" / f"{others}@0"):
            os.utime(folder, (1577836800, 1577836800))
        self.succeeds(self.run_here("launch", self.job(self.RUN)))
        self.assertEqual(sorted(path.name for path in (state / "launches").iterdir()), [others, fresh])
        self.assertEqual(sorted(path.name for path in (state / "jobs").iterdir()), [f"{others}@0", f"{fresh}@0"])

    def test_a_missing_file_of_prompts(self):
        self.fails(self.run_here("launch", self.job(self.RUN.replace('prompt = "In the beginning"', 'prompts = "/none"'))), 3, "/none")

    def test_what_cannot_be_written_is_said_at_once(self):
        self.fails(self.run_here("launch", self.job(self.RUN + 'report = "/proc/none"\n')), 4, "/proc/none")
        self.fails(self.run_here("launch", self.job(self.RUN), "--state", "/proc/none"), 4, "/proc/none")

    def test_no_model_anywhere(self):
        self.fails(self.run_here("launch", self.job(self.RUN.replace("STORE", str(self.folder / "nothing")))), 3, "no host has the model", "stagecoach import")

    def test_the_example_plans_without_its_hosts(self):
        text = (SOURCE / "configs/jobs/gptj-4pc.toml").read_text()
        key = self.folder / ".config/stagecoach/key"
        self.succeeds(self.run_here("agent", "--new-key", key))
        rates = "memory_gb_per_s = 20.0\nf32_gflop_per_s = 100.0\nbf16_gflop_per_s = 100.0\nint8_gop_per_s = 200.0\ndisk_gb_per_s = 1.0\n"
        # Addresses that nobody has (RFC 5737), and a model that is there: so small that one PC is faster.
        text = text.replace("192.168.1.", "192.0.2.").replace("replicas = 2", "replicas = 1").replace("/srv/stagecoach/gpt-j-6b-q8", str(self.store)).replace("GiB\"", f"GiB\"\n{rates}")
        file = self.folder / "job.toml"
        file.write_text(text)
        dry = self.run_here("launch", file, "--dry-run", "--json")
        self.succeeds(dry)
        self.assertIn("planned from the file", dry.stderr)
        self.assertFalse(json.loads(dry.stdout)["ranks"][0]["reached"])

    def test_a_gpu_is_planned_with_and_given_to_its_rank(self):
        node = ('address = "127.0.0.1"\nmemory = "2GB"\ndevice_memory = "600MB"\nmemory_gb_per_s = 20.0\nf32_gflop_per_s = 100.0\n'
                'bf16_gflop_per_s = 100.0\nint8_gop_per_s = 200.0\ndisk_gb_per_s = 1.0\n')
        run_table = self.RUN.replace('windows = "0:7"\n', "")
        self.fails(self.run_here("launch", self.job(run_table, node), "--dry-run"), 2, "device_memory", "how fast its GPU is", "device_gb_per_s")
        rates = "device_gb_per_s = 360.0\ndevice_gflop_per_s = 50000.0\nbus_gb_per_s = 12.0\n"
        dry = self.succeeds(self.run_here("launch", self.job(run_table, node + rates), "--dry-run", "--json"))
        plan = json.loads(dry.stdout)
        self.assertEqual(plan["ranks"][0]["device_memory"], 600_000_000)
        self.assertIn("--device=cuda", plan["command"])
        self.assertIn("--device-memory=600000000", plan["command"])
        # And the layers that its processor shall compute.
        dry = self.succeeds(self.run_here("launch", self.job(run_table + "cpu_layers = 2\n", node + rates), "--dry-run", "--json"))
        self.assertIn("--cpu-layers=2", json.loads(dry.stdout)["command"])
        # Who names a device gets it, and the plan is for it.
        dry = self.succeeds(self.run_here("launch", self.job(run_table + 'device = "cpu"\n', node + rates), "--dry-run", "--json"))
        plan = json.loads(dry.stdout)
        self.assertIn("--device=cpu", plan["command"])
        self.assertNotIn("--device=cuda", plan["command"])
        self.assertFalse([word for word in plan["command"] if word.startswith("--device-memory")])
        self.assertEqual(plan["ranks"][0]["device_memory"], 0)
        self.assertNotEqual(plan["bound_by"], "bus to the device")
        dry = self.succeeds(self.run_here("launch", self.job(run_table + 'device = "auto"\n', node + rates), "--dry-run", "--json"))
        self.assertIn("--device=auto", json.loads(dry.stdout)["command"])

    def test_devices_that_contradict_each_other(self):
        run_table = self.RUN.replace('windows = "0:7"\n', "")
        plain = 'address = "127.0.0.1"\nmemory = "2GB"\n'
        gpu = plain + 'device_memory = "600MB"\ndevice_gb_per_s = 360.0\ndevice_gflop_per_s = 50000.0\nbus_gb_per_s = 12.0\n'
        both = gpu + '[nodes.there]\naddress = "127.0.0.2"\nmemory = "2GB"\n'
        for settings, node, *words in (
                ('cpu_layers = 3\ndevice = "cpu"\n', gpu, "job.toml:7:14: cpu_layers is of GPUs", "try: remove cpu_layers, or device"),
                ('device_memory = "1GB"\ndevice = "cpu"\n', plain, "job.toml:7:17: device_memory is of GPUs"),
                ("cpu_layers = 3\n", plain, "job.toml:7:14: cpu_layers = 3 needs a GPU", "try: device_memory"),
                ('device = "cuda"\n', plain, "job.toml:7:10: device = \"cuda\": nodes.here has no device_memory", "in [nodes.here]"),
                ('device = "cuda:1"\n', both, "nodes.there has no device_memory", "in [nodes.there]")):
            for command in (("launch",), ("launch", "--dry-run"), ("doctor", "--quick")):
                with self.subTest(settings, command=command):
                    self.fails(self.run_here(*command, self.job(run_table + settings, node)), 2, *words)
        # What is planned without a GPU runs without.
        rates = "memory_gb_per_s = 20.0\nf32_gflop_per_s = 100.0\nbf16_gflop_per_s = 100.0\nint8_gop_per_s = 200.0\ndisk_gb_per_s = 1.0\n"
        dry = self.succeeds(self.run_here("launch", self.job(run_table, plain + rates), "--dry-run", "--json"))
        self.assertIn("--device=cpu", json.loads(dry.stdout)["command"])
        # Where nothing is planned ranks look for GPUs themselves.
        dry = self.succeeds(self.run_here("launch", self.job(self.RUN + 'device = "cuda"\n', plain), "--dry-run", "--json"))
        self.assertIn("--device=cuda", json.loads(dry.stdout)["command"])

    def test_a_gpu_that_is_too_small_and_one_without_rates_are_named(self):
        run_table = self.RUN.replace('windows = "0:7"\n', "")
        plain = ('address = "127.0.0.1"\nmemory = "2GB"\nmemory_gb_per_s = 20.0\nf32_gflop_per_s = 100.0\n'
                 'bf16_gflop_per_s = 100.0\nint8_gop_per_s = 200.0\ndisk_gb_per_s = 1.0\n')
        rates = "device_gb_per_s = 360.0\ndevice_gflop_per_s = 50000.0\nbus_gb_per_s = 12.0\n"
        small = self.run_here("launch", self.job(run_table, plain + 'device_memory = "1MB"\n' + rates), "--dry-run")
        self.fails(small, 4, "device_memory is too small for the model: here has 1.00 MB; expected at least ", "try: device_memory = ")
        least = small.stderr.split('device_memory = "')[1].split('"')[0]
        self.succeeds(self.run_here("launch", self.job(run_table, plain + f'device_memory = "{least}"\n' + rates), "--dry-run"))
        self.fails(self.run_here("launch", self.job(run_table + 'device_memory = "1GB"\n', plain), "--dry-run"), 2,
                   "job.toml:7:17: device_memory is for nodes.here, too", "how fast its GPU is")
        self.fails(self.run_here("launch", self.job(run_table + "cpu_layers = 9\n", plain + 'device_memory = "1GB"\n' + rates), "--dry-run"), 2,
                   "--cpu-layers 9: expected at most 7")

    def test_the_doctor_on_one_host(self):
        examined = self.run_here("doctor", self.job(self.RUN), "--json", "--quick", "--quiet")
        report = json.loads(examined.stdout)
        self.assertEqual(report["hosts"][0]["slabs"], 9)
        self.assertEqual(report["hosts"][0]["damaged"], 0)
        slab = self.folder / "store"
        subprocess.run(["cp", "-r", self.store, slab], check=True)
        with (slab / "layer-002.slab").open("r+b") as file:
            file.seek(9000)
            byte = file.read(1)
            file.seek(9000)
            file.write(bytes([byte[0] ^ 1]))
        examined = self.run_here("doctor", self.job(self.RUN.replace("STORE", str(slab))), "--json", "--quiet")
        self.assertEqual(examined.returncode, 3, examined.stderr)
        report = json.loads(examined.stdout)
        self.assertEqual(report["hosts"][0]["damaged"], 1)
        self.assertTrue(any("layer-002.slab" in finding["problem"] for finding in report["findings"]))

    def test_a_doctor_needs_no_open_mpi(self):
        # PATH has nothing in it: no mpirun, no nvidia-smi.
        empty = self.folder / "empty"
        empty.mkdir()
        examined = run("doctor", self.job(self.RUN), "--json", "--quick", "--quiet", environment=self.environment | {"PATH": str(empty)})
        self.assertEqual(examined.returncode, 4, examined.stderr)
        self.assertIn("Open MPI is not installed", [finding["problem"] for finding in json.loads(examined.stdout)["findings"]])


class Agent(StoreTest):
    def agent(self, *arguments):
        return run("agent", *arguments, environment={"HOME": str(self.folder)})

    def test_a_key_is_made_once_and_for_its_owner(self):
        key = self.folder / "keys/key"
        self.succeeds(self.agent("--new-key", key))
        self.assertEqual(key.stat().st_mode & 0o777, 0o600)
        self.assertRegex(key.read_text(), r"^[0-9a-f]{64}\n$")
        self.fails(self.agent("--new-key", key), 2, "is there already")

    def test_what_it_needs_to_start(self):
        self.fails(self.agent(), 3, ".config/stagecoach/key", "--new-key")
        key = self.folder / ".config/stagecoach/key"
        self.succeeds(self.agent("--new-key", key))
        key.chmod(0o644)
        self.fails(self.agent(), 4, "others than its owner", "chmod 600")
        key.chmod(0o600)
        self.fails(self.agent("--rate", "10kB"), 2, "1MB or more")
        self.fails(self.agent("--address", "not-an-address"), 2, "not-an-address")
        self.fails(self.agent("--stores", "/proc/none"), 4, "/proc/none")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.fails(self.agent("--address", "127.0.0.1", "--port", taken.getsockname()[1]), 4, "cannot listen")
        key.write_text("short\n")
        self.fails(self.agent(), 3, "64 hexadecimal digits")

    def test_it_ends_when_it_is_told(self):
        self.succeeds(self.agent("--new-key", self.folder / ".config/stagecoach/key"))
        for number in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen([BINARY, "agent", "--address", "127.0.0.1", "--port", "0"], stderr=subprocess.PIPE, text=True,
                                       env=ENVIRONMENT | {"HOME": str(self.folder)})
            self.assertIn("listening", process.stderr.readline())
            process.send_signal(number)
            process.communicate(timeout=TIMEOUT)
            self.assertEqual(process.returncode, 0)

    def test_a_temporary_one_ends_with_its_launch(self):
        order = json.dumps({"key": "ab" * 32, "stores": [str(self.folder)]}) + "\n"
        process = subprocess.Popen([BINARY, "agent", "--temporary"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                   env=ENVIRONMENT | {"HOME": str(self.folder)})
        process.stdin.write(order)
        process.stdin.flush()
        self.assertGreater(json.loads(process.stdout.readline())["port"], 0)
        process.stdin.close()
        self.assertEqual(process.wait(TIMEOUT), 0)
        process.stdout.close()
        for wrong in ("", "{}\n", "[]\n", '{"key": "x", "stores": []}\n', "garbage\n"):
            self.fails(run("agent", "--temporary", stdin=wrong, environment={"HOME": str(self.folder)}), 3)


if __name__ == "__main__":
    unittest.main()
