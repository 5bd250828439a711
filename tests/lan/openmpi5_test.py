"""Launches over Open MPI 5, and what is refused where one host has it and another 4.1. A download, once: skips where
there is no network (support_openmpi5.py), and where namespaces are not allowed."""

import os
import signal
import subprocess
import unittest

from launch_test import HOSTS, WINDOWS, Launches
from support import BINARY, ENVIRONMENT
from support_openmpi5 import VERSION, open_mpi_5


class OpenMpi5(Launches):
    @classmethod
    def setUpClass(cls):
        cls.five = open_mpi_5()
        super().setUpClass()

    def start_agents(self):
        for host in range(2, HOSTS + 1):
            self.start_agent(host, environment=self.five)

    def command(self, *arguments):
        return [*super().command(*arguments)[:3], "env", *(f"{name}={value}" for name, value in self.five.items()), BINARY,
                *super().command(*arguments)[4:]]

    def test_it_is_the_one_that_runs(self):
        version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, env=ENVIRONMENT | self.five, check=True)
        self.assertIn(f"Open MPI) {VERSION}", version.stdout)

    def test_a_killed_rank_without_replicas(self):
        # A rank that misses it may abort before anybody hears of a signal.
        self.start_agents()
        with self.launched(self.job(self.ENDLESS, launch='command = "time"')) as (process, ranks, errors):
            os.kill(ranks[2], signal.SIGKILL)
            code, text = self.ends(process, errors)
            self.assertEqual(code, 5, text)
            self.assertRegex(text, "signal 9|has lost a rank|rank 2 on sc-host3")

    def test_an_error_of_the_ranks_is_said_once(self):
        self.start_agents()
        job = self.job(f'prompt_ids = "1 99999"\nwindows = "{WINDOWS}"\n', launch="replicas = 2")
        self.fails(self.launch(job), 2, "99999 is outside the vocabulary")

    def test_beside_4_1(self):
        self.start_agent(2, environment=self.five)
        self.start_agent(3)
        self.start_agent(4, environment=self.five)
        job = self.job(f'prompt = "x"\nwindows = "{WINDOWS}"\n')
        self.fails(self.launch(job), 3, "different versions of Open MPI", " on sc-host3", f"{VERSION} on sc-host1, sc-host2, sc-host4")
        self.assertFalse(self.store_of(2).exists(), "slabs were shipped before")


# Of what is tested over 4.1 all that Open MPI has a part in.
def load_tests(_loader, _tests, _pattern):
    return unittest.TestSuite(OpenMpi5(name) for name in (
        "test_it_is_the_one_that_runs", "test_beside_4_1", "test_an_error_of_the_ranks_is_said_once", "test_prompts_come_from_the_launching_machine",
        "test_a_plan_for_unequal_hosts_runs_and_reports", "test_interrupted", "test_a_killed_launcher_leaves_nothing",
        "test_a_stopped_rank", "test_a_killed_rank_without_replicas", "test_a_cut_link_without_replicas",
        "test_a_killed_host_with_replicas", "test_a_killed_rank_with_replicas"))


if __name__ == "__main__":
    unittest.main()
