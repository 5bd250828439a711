"""Jobs over hosts with their own network cards: a cable is pulled. Skips where namespaces are not allowed."""

import subprocess
import time
import unittest

from support import BINARY, ENVIRONMENT, json_lines, run
from support_lan import LAN, PATIENCE, LanTest, lan


class Cables(LanTest):
    def test_two_hosts_give_the_text_of_one(self):
        flags = ("generate", "--store", self.store, "--prompt", "In the beginning", "--greedy", "--max-new-tokens", "20", "--json", "--quiet")
        alone = json_lines(run(*flags))[0]
        together = subprocess.run([LAN, "mpirun", "-np", "2", BINARY, *flags], capture_output=True, text=True, env=ENVIRONMENT,
                                  timeout=120, check=False)
        self.succeeds(together)
        self.assertEqual(json_lines(together)[0]["ids"], alone["ids"])

    def test_a_pulled_cable_ends_the_job_on_both_hosts(self):
        report = self.folder / "stderr"
        with report.open("wb") as stderr:
            process = subprocess.Popen([LAN, "mpirun", "-np", "2", BINARY, "time", "--store", self.store, "--tokens", "32",
                                        "--repeat", "1000000", "--verbose"], stdout=subprocess.DEVNULL, stderr=stderr, env=ENVIRONMENT)
        self.addCleanup(process.kill)
        deadline = time.monotonic() + PATIENCE
        while "all ranks are ready" not in report.read_text():
            self.assertIsNone(process.poll(), report.read_text())
            self.assertLess(time.monotonic(), deadline, report.read_text())
            time.sleep(0.1)
        lan("cut", 2)
        self.addCleanup(lan, "plug", 2)
        cut = time.monotonic()
        code = process.wait(PATIENCE)
        while any(lan("pids", host).stdout.split() for host in (1, 2)):
            self.assertLess(time.monotonic() - cut, PATIENCE, "a process outlived its job")
            time.sleep(0.2)
        print(f"\nthe job ended everywhere {time.monotonic() - cut:.1f} s after the cut, with code {code}")
        text = report.read_text()
        self.assertNotEqual(code, 0, text)
        messages = [line for line in text.splitlines() if line.startswith("stagecoach: ")]
        self.assertEqual(len(messages), 1, text)
        self.assertIn("rank 1 on sc-host2", messages[0])
        self.assertIn("layers ", messages[0])


if __name__ == "__main__":
    unittest.main()
