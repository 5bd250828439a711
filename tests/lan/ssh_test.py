"""Launches without agents, over OpenSSH itself: a server in each namespace, with keys of its own. What runs here once
as a user would have it; launch_test.py has the cases. Skips where there is no sshd, or no namespaces."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time
import unittest

from launch_test import HOSTS, WINDOWS, Launches
from support import ENVIRONMENT, json_lines
from support_lan import LAN, PATIENCE, lan

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
PORT = 2222
SEPARATION = pathlib.Path("/run/sshd")  # Debian's sshd wants it, and its init script makes it


class RealSsh(Launches):
    @classmethod
    def setUpClass(cls):
        if not pathlib.Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
            raise unittest.SkipTest("OpenSSH's server is not installed (apt-get install openssh-server)")
        super().setUpClass()
        if not SEPARATION.exists():
            SEPARATION.mkdir()
            cls.addClassCleanup(SEPARATION.rmdir)

    def setUp(self):
        super().setUp()
        self.servers = {}
        self.make_key("user")
        shutil.copy(self.folder / "user.pub", self.folder / "authorized_keys")
        self.known_hosts = self.folder / "known_hosts"
        self.known_hosts.touch()
        (self.folder / "ssh_config").write_text(
            f"Port {PORT}\nUser root\nBatchMode yes\nIdentityFile {self.folder}/user\nIdentitiesOnly yes\n"
            f"StrictHostKeyChecking yes\nGlobalKnownHostsFile none\nUserKnownHostsFile {self.known_hosts}\n")
        for host in range(2, HOSTS + 1):
            self.start_server(host)

    def make_key(self, name):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)

    def home(self, host):
        return self.folder / f"home{host}"

    def start_server(self, host):
        self.make_key(f"ssh-host{host}")
        (self.home(host) / "home").mkdir(parents=True)
        key_type, key = (self.folder / f"ssh-host{host}.pub").read_text().split()[:2]
        with self.known_hosts.open("a") as known:
            known.write(f"[10.77.0.{host}]:{PORT} {key_type} {key}\n")
        config, log = self.folder / f"sshd{host}_config", self.folder / f"sshd{host}.log"
        # A home for each: on PCs they are different ones, and here builds must not come from another run.
        config.write_text(
            f"ListenAddress 10.77.0.{host}:{PORT}\nHostKey {self.folder}/ssh-host{host}\nAuthorizedKeysFile {self.folder}/authorized_keys\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            f"SetEnv HOME={self.home(host)} PATH={ENVIRONMENT['PATH']}\n")
        process = subprocess.Popen([LAN, "exec", str(host), SSHD, "-D", "-f", config, "-E", log], stdin=subprocess.DEVNULL)
        self.servers[host] = process
        self.addCleanup(self.stop_server, host)
        deadline = time.monotonic() + PATIENCE
        while not log.exists() or "listening" not in log.read_text():
            self.assertIsNone(process.poll(), log.read_text() if log.exists() else "")
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)

    def stop_server(self, host):
        process = self.servers.pop(host, None)
        if process is not None:
            process.kill()
            process.wait()

    def start_agents(self):
        pass

    def command(self, *arguments):
        (self.folder / "home1").mkdir(exist_ok=True)
        return [LAN, "exec", "1", "env", f"HOME={self.home(1)}", *super().command(*arguments)[3:]]

    def job(self, *arguments, **options):
        file = super().job(*arguments, **options)
        file.write_text(file.read_text().replace(f'key = "{self.key}"', f'ssh = "ssh -F {self.folder}/ssh_config"'))
        return file

    def nothing_is_left(self):
        """On hosts but the launching one, nothing but the server that was there before."""
        deadline = time.monotonic() + PATIENCE
        for host in range(2, HOSTS + 1):
            while (left := set(lan("pids", host).stdout.split())) - {str(self.servers[host].pid)}:
                self.assertLess(time.monotonic(), deadline, f"host {host} has {left}")
                time.sleep(0.1)

    # ---- Tests ----

    def test_a_job_and_what_is_left_of_it(self):
        job = self.job(f'prompt = "In the beginning"\nmax_new_tokens = 8\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n'
                       f'report = "{self.folder}/report"\n')
        launched = self.succeeds(self.launch(job))
        alone = self.alone("--prompt", "In the beginning", "--greedy", "--max-new-tokens", "8")
        self.assertEqual(json_lines(launched)[0]["ids"], alone[0]["ids"])
        self.assertTrue((self.folder / "report/report.html").exists(), launched.stderr)
        self.nothing_is_left()
        for host in range(2, HOSTS + 1):
            # The build stays for the next launch; files of the job do not.
            self.assertEqual(len(list((self.home(host) / ".cache/stagecoach/builds").iterdir())), 1)
            self.assertEqual(list((self.home(host) / ".local/state/stagecoach/jobs").iterdir()), [])
        doctor = subprocess.run(self.command("doctor", job, "--quick", "--json", "--quiet"), capture_output=True, text=True,
                                env=ENVIRONMENT, timeout=120, check=False)
        self.assertEqual(doctor.returncode, 0, doctor.stderr)
        self.assertEqual([host["reached"] for host in json.loads(doctor.stdout)["hosts"]], [True] * HOSTS)
        self.nothing_is_left()

    def test_interrupted(self):
        super().test_interrupted()
        self.nothing_is_left()

    def test_a_killed_launcher_leaves_nothing(self):
        super().test_a_killed_launcher_leaves_nothing()
        self.nothing_is_left()

    def test_hosts_that_ssh_cannot_reach(self):
        self.stop_server(3)
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        self.fails(self.launch(job), 5, "sc-host3: cannot be reached", "Connection refused", "must work without a password")
        self.start_server_of_another_key(3)
        self.fails(self.launch(job), 5, "sc-host3: cannot be reached", "Host key verification failed")

    def start_server_of_another_key(self, host):
        known = self.known_hosts.read_text()
        shutil.rmtree(self.home(host))
        for file in self.folder.glob(f"ssh-host{host}*"):
            file.unlink()
        self.start_server(host)
        self.known_hosts.write_text(known)

    def test_interrupted_while_a_host_does_not_answer(self):
        os.kill(self.servers[3].pid, signal.SIGSTOP)  # it takes connections, and says nothing
        self.addCleanup(os.kill, self.servers[3].pid, signal.SIGCONT)
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        for command in ("launch", "doctor"):
            with self.subTest(command):
                errors = self.folder / "stderr"
                with errors.open("wb") as stderr:
                    process = subprocess.Popen(self.command(command, job), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                               stderr=stderr, env=ENVIRONMENT, start_new_session=True)
                deadline = time.monotonic() + PATIENCE
                while "reaching" not in errors.read_text():
                    self.assertIsNone(process.poll(), errors.read_text())
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.02)
                time.sleep(2)  # the others are reached
                os.killpg(process.pid, signal.SIGINT)
                begin = time.monotonic()
                self.assertEqual(process.wait(PATIENCE), 130, errors.read_text())
                took = time.monotonic() - begin
                print(f"\n{command} ended {took:.1f} s after Ctrl-C")
                self.assertLess(took, 15, "it waited for ssh, which gives up after 20 s")  # promised: 5
                self.assertIn("interrupted", errors.read_text())

    def test_without_a_home(self):
        job = self.job(f'prompt = "In the beginning"\nmax_new_tokens = 4\ngreedy = true\njson = true\nwindows = "{WINDOWS}"\n')
        command = self.command("launch", job)
        command[3:5] = ["env", "-u", "HOME"]
        launched = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
        self.succeeds(launched)


def load_tests(loader, _tests, _pattern):
    return unittest.TestSuite(RealSsh(name) for name in sorted(vars(RealSsh)) if name.startswith("test_"))


if __name__ == "__main__":
    unittest.main()
