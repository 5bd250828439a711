"""A lost rank ends the job everywhere, soon, with one message and a code that is not 0."""

import os
import pathlib
import signal
import subprocess
import time
import unittest

from support import BINARY, ENVIRONMENT, StoreTest, mpirun

# The job must end within 10 s of the loss at the default --peer-timeout. Tests look every second for less,
# and wait for longer: a loaded machine may be late, a hang never ends.
PEER_TIMEOUT = 3
PATIENCE = 60


def ranks_of(job):
    """{rank: pid} of a running job's ranks, found by their environment."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = dict(v.split(b"=", 1) for v in (entry / "environ").read_bytes().split(b"\0") if b"=" in v)
            command = (entry / "cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if environment.get(b"STAGECOACH_TEST_JOB") == job.encode() and command == os.fsencode(BINARY):
            found[int(environment.get(b"OMPI_COMM_WORLD_RANK", b"-1"))] = int(entry.name)
    return found


class LostRanks(StoreTest):
    def start(self, ranks):
        """A job that would run for hours; returns when every rank computes."""
        job = f"{os.getpid()}-{self.id()}"
        report = self.folder / "stderr"
        with report.open("wb") as stderr:
            process = subprocess.Popen(
                mpirun(ranks) + [BINARY, "time", "--store", self.store, "--tokens", "32", "--repeat", "1000000", "--verbose",
                                 "--peer-timeout", str(PEER_TIMEOUT)],
                stdout=subprocess.DEVNULL, stderr=stderr, env=ENVIRONMENT | {"STAGECOACH_TEST_JOB": job})
        self.addCleanup(self.clean_up, process, job)
        deadline = time.monotonic() + PATIENCE
        while report.read_text().count("all ranks are ready") == 0:
            self.assertIsNone(process.poll(), report.read_text())
            self.assertLess(time.monotonic(), deadline, report.read_text())
            time.sleep(0.1)
        pids = ranks_of(job)
        self.assertEqual(sorted(pids), list(range(ranks)))
        return process, pids, report, job

    @staticmethod
    def clean_up(process, job):
        process.kill()
        process.wait()
        for pid in ranks_of(job).values():
            os.kill(pid, signal.SIGKILL)

    def ends(self, process, job):
        code = process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while ranks_of(job):
            self.assertLess(time.monotonic(), deadline, "a rank outlived its job")
            time.sleep(0.1)
        return code

    def test_a_killed_rank(self):
        process, pids, report, job = self.start(3)
        os.kill(pids[1], signal.SIGKILL)
        self.assertNotEqual(self.ends(process, job), 0, report.read_text())

    def test_a_stopped_rank(self):
        for victim in (0, 2):
            with self.subTest(victim):
                process, pids, report, job = self.start(3)
                os.kill(pids[victim], signal.SIGSTOP)
                code = self.ends(process, job)
                text = report.read_text()
                self.assertEqual(code, 5, text)
                messages = [line for line in text.splitlines() if line.startswith("stagecoach: ")]
                self.assertEqual(len(messages), 1, text)
                self.assertIn(f"rank {victim} on", messages[0])
                self.assertIn("layers ", messages[0])

    def test_an_interrupted_job(self):
        process, _, report, job = self.start(2)
        process.send_signal(signal.SIGINT)
        self.assertNotEqual(self.ends(process, job), 0, report.read_text())


class SingleProcess(StoreTest):
    def test_ctrl_c_is_130(self):
        process = subprocess.Popen([BINARY, "time", "--store", self.store, "--tokens", "32", "--repeat", "1000000", "--verbose"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
        for line in process.stderr:
            if "all ranks are ready" in line:
                break
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=PATIENCE)
        self.assertEqual(process.returncode, 130)
        self.assertIn("interrupted", rest)


if __name__ == "__main__":
    unittest.main()
