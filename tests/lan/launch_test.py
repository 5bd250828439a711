"""Launches over hosts with their own network cards and agents: plans, slabs from neighbours, losses of every kind.
Skips where namespaces are not allowed."""

import contextlib
import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
import unittest

from support import BINARY, ENVIRONMENT, json_lines, run
from support_lan import LAN, PATIENCE, LanTest, lan

HOSTS = 4
# So that nobody has to be measured.
RATES = "memory_gb_per_s = 20.0\nf32_gflop_per_s = 100.0\nbf16_gflop_per_s = 100.0\nint8_gop_per_s = 200.0\ndisk_gb_per_s = 1.0\n"
WINDOWS = "0:2,2:4,4:6,6:7"


def processes(job, command):
    """Processes of a launched job, by the number of their host in the job file (0 is the first)."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = dict(v.split(b"=", 1) for v in (entry / "environ").read_bytes().split(b"\0") if b"=" in v)
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        tag = variables.get(b"STAGECOACH_LAUNCH", b"").decode()
        if variables.get(b"STAGECOACH_TEST_JOB", job.encode()) != job.encode() or "@" not in tag:
            continue
        if command in words and words[0].endswith(b"stagecoach"):
            found[int(tag.split("@")[1])] = int(entry.name)
    return found


class Launches(LanTest):
    HOSTS = HOSTS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.key = cls.shared / "key"
        assert run("agent", "--new-key", cls.key).returncode == 0

    def setUp(self):
        super().setUp()
        self.agents = {}

    # ---- Hosts ----

    def start_agent(self, host, key=None, binary=BINARY, environment=None):
        folder = self.folder / f"host{host}"
        folder.mkdir(exist_ok=True)
        log = self.folder / f"agent{host}.log"
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [LAN, "exec", str(host), binary, "agent", "--key", key or self.key, "--stores", folder, "--state", folder / "state"],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=ENVIRONMENT | (environment or {}))
        self.addCleanup(self.stop_agent, host)
        self.agents[host] = process
        deadline = time.monotonic() + PATIENCE
        while "listening" not in log.read_text():
            self.assertIsNone(process.poll(), log.read_text())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def stop_agent(self, host):
        process = self.agents.pop(host, None)
        if process is not None:
            process.kill()
            process.wait()

    def start_agents(self):
        for host in range(2, HOSTS + 1):
            self.start_agent(host)

    def job(self, run_table, launch="", memory=None, hosts=HOSTS, source=None):
        memory = memory or {}
        text = f'[launch]\nkey = "{self.key}"\n{launch}\n[run]\nstore = "{source or self.store}"\n{run_table}\n'
        for host in range(1, hosts + 1):
            text += (f'[nodes.sc-host{host}]\naddress = "10.77.0.{host}"\nstore = "{self.store_of(host)}"\n'
                     f'memory = "{memory.get(host, "1GB")}"\n{RATES}')
        file = self.folder / "job.toml"
        file.write_text(text)
        return file

    def store_of(self, host):
        return self.folder / f"host{host}" / "model"

    # ---- Launches ----

    def command(self, *arguments):
        return [LAN, "exec", "1", BINARY, *map(str, arguments), *(["--state", self.folder / "state"] if arguments[0] == "launch" else [])]

    def launch(self, job, *flags, environment=ENVIRONMENT, timeout=120):
        return subprocess.run(self.command("launch", job, *flags), stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
                              timeout=timeout, check=False)

    @contextlib.contextmanager
    def launched(self, job, *flags, home=None, environment=ENVIRONMENT):
        """A launch whose ranks all run: (process, {host: pid}, file of stderr)."""
        name = f"{os.getpid()}-{self.id()}"
        errors, results = self.folder / "stderr", self.folder / "stdout"
        with errors.open("wb") as stderr, results.open("wb") as stdout:
            process = subprocess.Popen(self.command("launch", job, *flags), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                                       env=environment | {"STAGECOACH_TEST_JOB": name} | ({"HOME": str(home)} if home else {}),
                                       start_new_session=True)
        try:
            table = job.read_bytes().split(b"[run]")[0]
            command = next((name for name in (b"time", b"score") if b'"' + name + b'"' in table), b"generate")
            deadline = time.monotonic() + PATIENCE
            while len(ranks := processes(name, command)) < HOSTS or "ranks: " not in errors.read_text():
                self.assertIsNone(process.poll(), errors.read_text())
                self.assertLess(time.monotonic(), deadline, errors.read_text())
                time.sleep(0.05)
            yield process, ranks, errors
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            # The agents end what a dead launcher has left.
            deadline = time.monotonic() + PATIENCE
            while processes(name, command):
                self.assertLess(time.monotonic(), deadline, "a rank outlived its launch")
                time.sleep(0.1)

    ENDLESS = f'tokens = 32\nrepeat = 1000000\nwindows = "{WINDOWS}"\n'

    def ends(self, process, errors):
        begin = time.monotonic()
        code = process.wait(PATIENCE)
        print(f"\n{self.id()}: the launch ended after {time.monotonic() - begin:.1f} s with code {code}")
        return code, errors.read_text()

    def alone(self, *flags):
        return json_lines(self.succeeds(run("generate", "--store", self.store, "--json", "--quiet", *flags)))

    # ---- What it does ----

    def test_a_plan_for_unequal_hosts_runs_and_reports(self):
        self.start_agents()
        # Layers of 619 kB, so that what matters is how many of them a host's memory takes.
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 1000, "n_positions": 64, "n_embd": 1024,
                  "n_layer": 12, "n_head": 16, "activation_function": "gelu_new"}
        (self.folder / "config.json").write_text(json.dumps(config))
        model = self.folder / "model"
        self.succeeds(run("create", self.folder / "config.json", model, "--weights", "f32", "--quiet"))  # 50 MB a layer
        job = self.job(f'prompt_ids = "5 6 7"\nmax_new_tokens = 8\ngreedy = true\njson = true\nreport = "{self.folder / "report"}"\n',
                       source=model, memory={1: "330MB", 2: "420MB", 3: "200MB", 4: "260MB"})
        plan = json.loads(self.succeeds(self.launch(job, "--dry-run", "--json")).stdout)
        self.assertGreater(len(plan["ranks"]), 1, plan)
        sizes = [end - begin for begin, end in (map(int, window.split(":")) for window in plan["windows"].split(","))]
        self.assertEqual(sum(sizes), 12)
        self.assertFalse(any(self.store_of(host).exists() for host in range(1, HOSTS + 1)), "a dry run changed something")
        launched = self.succeeds(self.launch(job))
        alone = json_lines(self.succeeds(run("generate", "--store", model, "--prompt-ids", "5 6 7", "--max-new-tokens", "8", "--greedy",
                                             "--json", "--quiet")))
        self.assertEqual(json_lines(launched)[0]["ids"], alone[0]["ids"])
        self.assertTrue((self.folder / "report/report.html").exists(), launched.stderr)
        for rank in plan["ranks"]:
            slabs = {file.name for file in self.store_of(int(rank["host"][-1])).glob("*.slab")}
            self.assertEqual(slabs, set(rank["slabs_to_ship"]), "a host has what it needs and nothing else")
        again = json.loads(self.succeeds(self.launch(job, "--dry-run", "--json")).stdout)
        self.assertEqual([rank["bytes_to_ship"] for rank in again["ranks"]], [0] * len(again["ranks"]))

    def test_prompts_come_from_the_launching_machine(self):
        self.start_agents()
        prompts = self.folder / "prompts.txt"
        prompts.write_text("In the beginning\nAnd it came to pass\n")
        job = self.job(f'prompts = "{prompts}"\nmax_new_tokens = 12\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n')
        together = json_lines(self.succeeds(self.launch(job, "--quiet")))
        alone = self.alone("--prompts", prompts, "--greedy", "--max-new-tokens", "12")
        self.assertEqual([line["ids"] for line in together], [line["ids"] for line in alone])

    def test_a_missing_slab_comes_from_a_neighbour(self):
        self.start_agents()
        job = self.job(f'prompt = "In the beginning"\nmax_new_tokens = 8\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n',
                       launch="replicas = 2")
        first = json_lines(self.succeeds(self.launch(job)))
        # Host 2 loses a layer, and the launching machine has no store any more: only a neighbour has it.
        (self.store_of(2) / "layer-003.slab").unlink()
        text = job.read_text().replace(str(self.store), str(self.folder / "gone"))
        job.write_text(text)
        second = self.succeeds(self.launch(job))
        self.assertIn("shipping", second.stderr)
        self.assertEqual(json_lines(second)[0]["ids"], first[0]["ids"])
        self.succeeds(run("verify", self.store_of(2)))

    def test_another_build_gets_this_one(self):
        other = self.folder / "other"
        shutil.copytree(pathlib.Path(BINARY).parent.parent / "lib/stagecoach", other / "lib/stagecoach")
        (other / "bin").mkdir()
        shutil.copy(BINARY, other / "bin/stagecoach")
        with (other / "bin/stagecoach").open("ab") as binary:
            binary.write(b"another build")
        self.start_agent(2, binary=other / "bin/stagecoach")
        self.start_agent(3)
        self.start_agent(4)
        job = self.job(f'prompt = "In the beginning"\nmax_new_tokens = 8\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n')
        launched = self.succeeds(self.launch(job))
        self.assertIn("sc-host2: has another build", launched.stderr)
        alone = self.alone("--prompt", "In the beginning", "--greedy", "--max-new-tokens", "8")
        self.assertEqual(json_lines(launched)[0]["ids"], alone[0]["ids"])
        builds = list((self.folder / "host2/state/builds").glob("*/bin/stagecoach"))
        self.assertEqual([build.read_bytes() == pathlib.Path(BINARY).read_bytes() for build in builds], [True])

    # ---- What it refuses ----

    def test_a_wrong_key(self):
        other = self.folder / "other-key"
        self.succeeds(run("agent", "--new-key", other))
        self.start_agent(2, key=other)
        self.start_agent(3)
        self.start_agent(4)
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        self.fails(self.launch(job), 4, "sc-host2", "another key")
        self.assertIn("does not have the key", (self.folder / "agent2.log").read_text())
        self.assertFalse(self.store_of(3).exists())

    def test_hosts_that_do_not_answer(self):
        self.start_agent(2)
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        self.fails(self.launch(job), 5, "sc-host3", "sc-host4", "2 of 4 hosts")
        # A dry run plans from the file.
        self.assertIn("planned from the file", self.succeeds(self.launch(job, "--dry-run")).stderr)

    def test_another_open_mpi(self):
        fake = self.folder / "fake"
        fake.mkdir()
        (fake / "mpirun").write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.8'\n")
        (fake / "mpirun").chmod(0o755)
        self.start_agent(2)
        self.start_agent(3, environment={"PATH": f"{fake}:{ENVIRONMENT['PATH']}"})
        self.start_agent(4)
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        self.fails(self.launch(job), 3, "5.0.8 on sc-host3", "on sc-host1, sc-host2, sc-host4")

    def test_the_doctor_knows(self):
        self.start_agent(2)
        self.start_agent(3)
        job = self.job('prompt = "x"\n')
        doctor = subprocess.run(self.command("doctor", job, "--json", "--quiet"), capture_output=True, text=True, env=ENVIRONMENT,
                                timeout=120, check=False)
        report = json.loads(doctor.stdout)
        self.assertEqual(doctor.returncode, 5)
        self.assertEqual([host["reached"] for host in report["hosts"]], [True, True, True, False])
        self.assertEqual([(f["host"], f["serious"]) for f in report["findings"]], [("sc-host4", True)])
        self.assertIn("start stagecoach-agent", report["findings"][0]["fix"])
        self.assertEqual(len(report["links"]), 6)
        for host in report["hosts"][:3]:
            self.assertEqual(host["facts"]["interfaces"][0]["name"], "eth0")
        self.assertFalse(self.store_of(2).exists(), "the doctor changed something")

    # ---- What it survives ----

    def test_interrupted(self):
        self.start_agents()
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, _, errors):
            os.killpg(process.pid, signal.SIGINT)
            code, text = self.ends(process, errors)
            self.assertEqual(code, 130, text)
            self.assertIn("interrupted", text)

    def test_interrupted_with_a_silent_agent(self):
        self.start_agents()
        agent = self.agents[3].pid
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, _, errors):
            os.kill(agent, signal.SIGSTOP)
            begin = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            code, text = self.ends(process, errors)
            took = time.monotonic() - begin
            os.kill(agent, signal.SIGCONT)
            self.assertEqual(code, 130, text)
            self.assertLess(took, 15)  # it would wait for 30 s that the agent's files are gone

    def ends_when_interrupted(self, command, words, meanwhile=lambda: None):
        """Ctrl-C when stderr has said `words`. What is waited for here would take minutes; five seconds are promised."""
        errors = self.folder / "stderr"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=ENVIRONMENT,
                                       start_new_session=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE
        while words not in errors.read_text():
            self.assertIsNone(process.poll(), errors.read_text())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        meanwhile()
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        begin = time.monotonic()
        self.assertEqual(process.wait(PATIENCE), 130, errors.read_text())
        took = time.monotonic() - begin
        print(f"\n{self.id()}: ended {took:.1f} s after Ctrl-C")
        self.assertLess(took, 15)
        self.assertIn("interrupted", errors.read_text())

    def test_interrupted_while_an_agent_is_silent(self):
        self.start_agents()
        os.kill(self.agents[3].pid, signal.SIGSTOP)  # its kernel takes connections for it
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        for command in ("launch", "doctor"):
            self.ends_when_interrupted(self.command(command, job), "reaching")

    def stop_the_probe(self, host):
        """A probe that would take forever."""
        deadline = time.monotonic() + PATIENCE
        while not (found := self.probes(host)):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        for pid in found:
            os.kill(pid, signal.SIGSTOP)

    def probes(self, host):
        found = []
        for pid in lan("pids", host).stdout.split():
            with contextlib.suppress(OSError):
                if b"probe" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(pid))
        return found

    def test_interrupted_while_a_host_is_probed(self):
        self.start_agents()
        job = self.job('prompt = "x"\n')
        head, _, rest = job.read_text().rpartition(RATES)  # the last host has none
        job.write_text(head + rest)
        self.ends_when_interrupted(self.command("launch", job), "measuring how fast", lambda: self.stop_the_probe(HOSTS))
        deadline = time.monotonic() + PATIENCE
        while self.probes(HOSTS):
            self.assertLess(time.monotonic(), deadline, "the probe goes on for nobody")
            time.sleep(0.1)

    def test_a_silent_name_server(self):
        self.start_agents()
        server = subprocess.Popen([LAN, "exec", "2", "python3", "-c", "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); "
                                   "s.bind(('10.77.0.2', 53)); print('up', flush=True); time.sleep(1000)"], stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.assertEqual(server.stdout.readline(), "up\n")
        (self.folder / "resolv.conf").write_text("nameserver 10.77.0.2\noptions timeout:30 attempts:5\n")
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        job.write_text(job.read_text().replace('address = "10.77.0.3"', 'address = "pc-c.example"'))

        def without_names(*arguments):
            command = self.command(*arguments)
            return [*command[:3], "unshare", "--mount", "sh", "-c", f'mount --bind {self.folder}/resolv.conf /etc/resolv.conf && exec "$@"',
                    "sh", *command[3:]]

        for command in ("launch", "doctor"):
            self.ends_when_interrupted(without_names(command, job), "reaching")
        launched = subprocess.run(without_names("launch", job), capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
        self.fails(launched, 5, "pc-c.example", "no name server answers")

    def test_a_killed_launcher_leaves_nothing(self):
        self.start_agents()
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, _, _errors):
            os.killpg(process.pid, signal.SIGKILL)  # launched() sees to it that no rank is left

    def test_a_stopped_rank(self):
        self.start_agents()
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, ranks, errors):
            os.kill(ranks[1], signal.SIGSTOP)
            code, text = self.ends(process, errors)
            self.assertEqual(code, 5, text)
            self.assertEqual(text.count("stagecoach: "), 1, text)
            self.assertIn("rank 1 on sc-host2", text)

    def test_a_killed_rank_without_replicas(self):
        self.start_agents()
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, ranks, errors):
            os.kill(ranks[2], signal.SIGKILL)
            code, text = self.ends(process, errors)
            self.assertEqual(code, 5, text)
            self.assertIn("signal 9", text)

    def test_a_cut_link_without_replicas(self):
        self.start_agents()
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, _, errors):
            self.addCleanup(lan, "plug", 3)
            lan("cut", 3)
            code, text = self.ends(process, errors)
            self.assertEqual(code, 5, text)
            self.assertIn("sc-host3", text)
            self.assertIn("layers 4:6", text)

    def goes_on(self, loss, expected):
        """A job of many prompts that loses something on the way gives what it gives alone, each text once."""
        self.start_agents()
        prompts = self.folder / "prompts.txt"
        prompts.write_text("".join(f"{start}\n" for start in ["In the beginning", "And it came to pass", "The king said"] * 300))
        job = self.job(f'prompts = "{prompts}"\nmax_new_tokens = 60\nignore_eos = true\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n',
                       launch="replicas = 2")
        with self.launched(job) as (process, ranks, errors):
            results = self.folder / "stdout"
            deadline = time.monotonic() + PATIENCE
            while results.read_text().count("\n") < 40:
                self.assertIsNone(process.poll(), errors.read_text())
                self.assertLess(time.monotonic(), deadline, errors.read_text())
                time.sleep(0.05)
            loss(ranks)
            code, text = self.ends(process, errors)
        self.assertEqual(code, 0, text)
        self.assertIn(expected, text)
        self.assertIn("tokens were drawn before", text)
        lines = results.read_text().splitlines()
        self.assertEqual([line for line in lines if not line.startswith("{")], [], "what is no result")
        together = [json.loads(line)["ids"] for line in lines]
        alone = [line["ids"] for line in self.alone("--prompts", prompts, "--max-new-tokens", "60", "--ignore-eos", "--greedy")]
        self.assertEqual(together, alone)

    def kill_host(self, host):
        for pid in lan("pids", host).stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def test_a_killed_host_with_replicas(self):
        self.goes_on(lambda _: self.kill_host(3), "going on with 3 hosts: 0:2,2:5,5:7")

    def test_two_killed_hosts_with_replicas(self):
        def loss(_):
            self.kill_host(2)
            self.kill_host(4)
        self.goes_on(loss, "0:3,3:7")

    def test_a_cut_link_with_replicas(self):
        self.addCleanup(lan, "plug", 4)
        self.goes_on(lambda _: lan("cut", 4), "going on with 3 hosts: 0:2,2:4,4:7")

    def test_a_killed_rank_with_replicas(self):
        self.goes_on(lambda ranks: os.kill(ranks[1], signal.SIGKILL), "all hosts answer: starting again")

    # ---- Jobs whose mpirun says something else ----

    def mpirun(self, script):
        """The environment of a launch that runs `script` in mpirun's place."""
        fake = self.folder / "fake"
        fake.mkdir(exist_ok=True)
        (fake / "mpirun").write_text(f'#!/bin/sh\nPATH="{ENVIRONMENT["PATH"]}"\ncase "$1" in --version) exec mpirun "$@" ;; esac\n{script}\n')
        (fake / "mpirun").chmod(0o755)
        return ENVIRONMENT | {"PATH": f"{fake}:{ENVIRONMENT['PATH']}"}

    def test_an_mpirun_that_hangs(self):
        self.start_agents()
        environment = self.mpirun('mpirun "$@"; sleep 1000')
        settings = f'greedy = true\njson = true\nmax_new_tokens = 8\nwindows = "{WINDOWS}"\n'
        hanging = {"environment": environment, "timeout": PATIENCE}
        # The job has ended all the same.
        done = self.succeeds(self.launch(self.job(f'prompt = "In the beginning"\n{settings}'), **hanging))
        alone = self.alone("--prompt", "In the beginning", "--greedy", "--max-new-tokens", "8")
        self.assertEqual(json_lines(done)[0]["ids"], alone[0]["ids"])
        self.assertIn("mpirun has not ended 10 s after its ranks: it was ended", done.stderr)
        self.fails(self.launch(self.job(f'prompt_ids = "1 99999"\n{settings}'), **hanging), 2, "99999 is outside the vocabulary")
        # So has one that has not begun.
        self.stop_agent(3)
        self.start_agent(3, environment={"STAGECOACH_THREADS": "none"})
        self.fails(self.launch(self.job(f'prompt = "x"\n{settings}'), **hanging), 2, "STAGECOACH_THREADS", "sc-host3")
        self.stop_agent(3)
        self.start_agent(3)
        # A rank that says nothing any more.
        job = self.job(self.ENDLESS, launch='command = "time"')
        with self.launched(job, environment=environment) as (process, ranks, errors):
            os.kill(ranks[1], signal.SIGKILL)
            code, text = self.ends(process, errors)
        self.assertEqual(code, 5, text)
        self.assertIn("mpirun has not ended 10 s after its ranks", text)

    def test_a_host_that_is_lost_when_all_is_written(self):
        self.start_agents()
        environment = self.mpirun(f'mpirun "$@" && touch "{self.folder}/ended" && sleep 1000')
        job = self.job(f'prompt = "In the beginning"\nmax_new_tokens = 8\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n')
        process = subprocess.Popen(self.command("launch", job), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=environment, start_new_session=True)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / "ended").exists():
            self.assertIsNone(process.poll())
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        self.kill_host(3)
        out, err = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 0, err)
        self.assertIn("all results were written before", err)
        alone = self.alone("--prompt", "In the beginning", "--greedy", "--max-new-tokens", "8")
        self.assertEqual([json.loads(line)["ids"] for line in out.splitlines()], [alone[0]["ids"]])

    def test_results_that_mpirun_has_not_handed_on(self):
        self.start_agents()
        environment = self.mpirun('mpirun "$@" | head -c -20')
        job = self.job(f'prompt = "In the beginning"\nmax_new_tokens = 8\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n')
        launched = self.launch(job, environment=environment, timeout=PATIENCE)
        self.assertEqual(launched.returncode, 5, launched.stderr)
        self.assertIn("mpirun ended before all results had come", launched.stderr)

    # ---- A long pass ----

    # 50 MB a layer in f32, 20 GFLOP of its products a 1,000 tokens.
    LAYERS = 12
    LONG = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 1000, "n_positions": 1024, "n_embd": 1024,
            "n_layer": LAYERS, "n_head": 16, "activation_function": "gelu_new"}

    def long_model(self):
        (self.folder / "config.json").write_text(json.dumps(self.LONG))
        model = self.folder / "model"
        self.succeeds(run("create", self.folder / "config.json", model, "--weights", "f32", "--seed", 1, "--quiet"))
        ids = self.folder / "ids"
        ids.write_text(" ".join(str(i * 37 % 1000) for i in range(1000)))
        return model, ids

    def score_goes_on(self, loss):
        """A score that loses something amid its layers gives what it gives alone, and does not compute all of them again."""
        self.start_agents()
        model, ids = self.long_model()
        windows = ",".join(f"{layer}:{layer + 1}" for layer in range(self.LAYERS))
        job = self.job(f'ids = "{ids}"\njson = true\nwindows = "{windows}"\nreport = "{self.folder / "report"}"\n',
                       launch='command = "score"\nreplicas = 2', source=model)
        with self.launched(job) as (process, ranks, errors):
            deadline = time.monotonic() + PATIENCE
            while len(list(self.folder.glob("host*/state/jobs/*/pass/layers-*.hidden"))) < 4:
                self.assertIsNone(process.poll(), errors.read_text())
                self.assertLess(time.monotonic(), deadline, errors.read_text())
                time.sleep(0.02)
            loss(ranks)
            code, text = self.ends(process, errors)
        self.assertEqual(code, 0, text)
        done = int(re.search(rf"going on after (\d+) of {self.LAYERS} layers", text)[1])
        print(f"{self.LAYERS - done} of {self.LAYERS} layers were left to do")
        self.assertGreaterEqual(done, 2)
        report = json.loads((self.folder / "report/run.json").read_text())
        computed = {int(row["layer"]) for row in csv.DictReader((self.folder / "report/layers.csv").read_text().splitlines())}
        self.assertEqual(computed, set(range(done, self.LAYERS)), "layers that the second run computed")
        self.assertIn(f"from layer {done} on", report["work"])
        together = [json.loads(line) for line in (self.folder / "stdout").read_text().splitlines()]
        alone = json_lines(self.succeeds(run("score", "--store", model, "--ids", ids, "--json", "--quiet")))
        self.assertEqual([line["logprobs"] for line in together], [alone[0]["logprobs"]])
        return text

    def test_a_score_goes_on_without_a_killed_host(self):
        self.assertIn("going on with 3 hosts", self.score_goes_on(lambda _: self.kill_host(3)))

    def test_a_score_goes_on_after_a_killed_rank(self):
        self.assertIn("all hosts answer: starting again", self.score_goes_on(lambda ranks: os.kill(ranks[1], signal.SIGKILL)))

    def hidden_states(self, folder):
        """By the layers that are done, of all hosts."""
        return {int(file.stem.split("-")[1]): file for file in self.folder.glob(f"host*/{folder}/layers-*.hidden")}

    def test_a_score_goes_on_before_a_damaged_state(self):
        def loss(ranks):
            for pid in ranks.values():
                os.kill(pid, signal.SIGSTOP)
            states = self.hidden_states("state/jobs/*/pass")
            for host in range(2, HOSTS + 1):
                self.assertLessEqual(len(list(self.folder.glob(f"host{host}/state/jobs/*/pass/layers-*.hidden"))), 3, "only the newest")
            newest = states[max(states)]
            content = bytearray(newest.read_bytes())
            content[-1] ^= 1
            newest.write_bytes(content)
            for pid in ranks.values():
                os.kill(pid, signal.SIGKILL)

        text = self.score_goes_on(loss)
        self.assertEqual(text.count("is damaged"), 1, text)

    def test_a_score_of_one_plan_starts_again(self):
        """What is kept fits no other plan. Each host keeps it in the home of its agent's user."""
        for host in range(2, HOSTS + 1):
            self.start_agent(host, environment={"HOME": str(self.folder / f"host{host}")})
        model, ids = self.long_model()
        windows = ",".join(f"{layer}:{layer + 1}" for layer in range(self.LAYERS))
        job = self.job(f'ids = "{ids}"\njson = true\nwindows = "{windows}"\nwire = "bf16"\ncheckpoint = "~/kept"\n',
                       launch='command = "score"\nreplicas = 2', source=model)
        with self.launched(job, home=self.folder / "host1") as (process, _, errors):
            deadline = time.monotonic() + PATIENCE
            while len(self.hidden_states("kept")) < 4:
                self.assertIsNone(process.poll(), errors.read_text())
                self.assertLess(time.monotonic(), deadline, errors.read_text())
                time.sleep(0.02)
            self.kill_host(3)
            code, text = self.ends(process, errors)
        self.assertEqual(code, 0, text)
        self.assertRegex(text, r"starting from the first layer: what was computed of the first \d+ layers.*wire bf16")
        self.assertEqual((self.folder / "stdout").read_text().count("\n"), 1)

    def test_a_score_without_room_is_not_kept(self):
        state = self.folder / "host3/state"
        state.mkdir(parents=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", state], check=False).returncode != 0:
            self.skipTest("mounting a small file system is not allowed")
        self.addCleanup(subprocess.run, ["umount", "--lazy", state], check=True)
        self.start_agents()
        model, ids = self.long_model()
        windows = ",".join(f"{layer}:{layer + 1}" for layer in range(self.LAYERS))
        job = self.job(f'ids = "{ids}"\njson = true\nwindows = "{windows}"\n', launch='command = "score"\nreplicas = 2', source=model)
        launched = self.succeeds(self.launch(job))
        self.assertEqual(launched.stderr.count("have no room"), 1, launched.stderr)
        self.assertIn("sc-host3: hidden states", launched.stderr)

    # ---- Second copies ----

    def test_second_copies_come_back_with_the_next_launch(self):
        self.start_agents()
        text = f'prompt = "In the beginning"\nmax_new_tokens = 4\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n'
        job = self.job(text, launch="replicas = 2")
        first = json_lines(self.succeeds(self.launch(job)))
        self.assertEqual(self.single_copies(range(1, HOSTS + 1)), [])
        # Host 3 is another PC now, with nothing on its disk.
        shutil.rmtree(self.store_of(3))
        self.assertNotEqual(self.single_copies(range(1, HOSTS + 1)), [])
        job.write_text(job.read_text().replace(str(self.store), str(self.folder / "gone")))  # nobody has a whole model
        again = self.succeeds(self.launch(job))
        self.assertEqual(json_lines(again)[0]["ids"], first[0]["ids"])
        self.assertEqual(self.single_copies(range(1, HOSTS + 1)), [])
        self.succeeds(run("verify", self.store_of(3)))
        # It is gone for good: out of the file with it. Those that are left get what each of them lacks.
        head, _, rest = job.read_text().partition("[nodes.sc-host3]")
        job.write_text(head.replace(WINDOWS, "0:2,2:5,5:7") + rest[rest.index("[nodes.sc-host4]"):])
        self.succeeds(self.launch(job))
        self.assertEqual(self.single_copies((1, 2, 4)), [])
        dry = json.loads(self.succeeds(self.launch(job, "--dry-run", "--json")).stdout)
        self.assertEqual([rank["bytes_to_ship"] for rank in dry["ranks"]], [0, 0, 0])

    def single_copies(self, hosts):
        slabs = [file.name for host in hosts for file in self.store_of(host).glob("*.slab")]
        return sorted(name for name in {file.name for file in self.store.glob("*.slab")} if slabs.count(name) < 2)


class OverSsh(Launches):
    """The same without agents: what runs commands there stands for ssh."""

    def setUp(self):
        super().setUp()
        self.home = self.folder / "home"
        self.home.mkdir()

    def start_agents(self):
        pass

    def command(self, *arguments):
        return [LAN, "exec", "1", "env", f"HOME={self.home}", *super().command(*arguments)[3:]]

    def job(self, *arguments, **options):
        file = super().job(*arguments, **options)
        file.write_text(file.read_text().replace(f'key = "{self.key}"', f'ssh = "{LAN} rsh"'))
        return file

    def test_a_host_without_ssh(self):
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        job.write_text(job.read_text().replace(f"{LAN} rsh", "false"))
        self.fails(self.launch(job), 5, "cannot be reached", "3 of 4 hosts")


# Of the tests above those that say something about ssh.
def load_tests(loader, _tests, _pattern):
    suite = unittest.TestSuite()
    suite.addTests(loader.loadTestsFromTestCase(Launches))
    for name in ("test_prompts_come_from_the_launching_machine", "test_interrupted", "test_a_killed_launcher_leaves_nothing",
                 "test_a_cut_link_with_replicas", "test_a_host_without_ssh"):
        suite.addTest(OverSsh(name))
    return suite


if __name__ == "__main__":
    unittest.main()
