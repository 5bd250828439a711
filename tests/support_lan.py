"""What the tests over several hosts share: scripts/lan_cluster, and hosts for the time of a class."""

import subprocess
import unittest

from support import ENVIRONMENT, MPIRUN, SOURCE, StoreTest

LAN = SOURCE / "scripts/lan_cluster"
PATIENCE = 60  # promises are 10 s and less; a loaded machine may be late, a hang never ends


def lan(*arguments, **options):
    return subprocess.run([LAN, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE, check=False,
                          **options)


def plug_hosts_together(test_class, *arguments, **options):
    """`lan_cluster up` until the class is done. Skips where namespaces are not allowed."""
    up = lan("up", *arguments, **options)
    if up.returncode == 77:
        raise unittest.SkipTest(up.stderr.strip())
    assert up.returncode == 0, up.stderr
    test_class.addClassCleanup(lan, "down")


class LanTest(StoreTest):
    """Has HOSTS hosts and Open MPI."""

    HOSTS = 2

    @classmethod
    def setUpClass(cls):
        if MPIRUN is None:
            raise unittest.SkipTest("Open MPI is not installed")
        plug_hosts_together(cls, cls.HOSTS)
        super().setUpClass()
