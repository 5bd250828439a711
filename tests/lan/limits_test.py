"""Hosts as small as the PCs they stand for: memory, disk and network limits. Skips where they cannot be set."""

import json
import pathlib
import re
import subprocess
import tempfile
import time
import unittest

from support import BINARY, ENVIRONMENT
from support_lan import LAN, PATIENCE, lan, plug_hosts_together

BUILD = pathlib.Path(BINARY).parent
CGROUPS = pathlib.Path("/sys/fs/cgroup")
MEMORY, DISK = 256 << 20, 50_000_000
# Prints once it holds that many bytes, each page of them touched.
HOLD = "import sys; held = bytearray(int(sys.argv[1])); held[::4096] = b'x' * len(held[::4096]); print('holds them')"


def first_file(host, *names):
    """What stands in the first of these files of the host's groups, as cgroup v1 and v2 name them."""
    for name in names:
        for root in (CGROUPS / name.split(".")[0], CGROUPS):
            file = root / f"sc-host{host}" / name
            if file.exists():
                return file.read_text().strip()
    raise AssertionError(f"sc-host{host} has none of {names}")


def memory_limit(host):
    return first_file(host, "memory.limit_in_bytes", "memory.max")


def disk_limits(host):
    return first_file(host, "blkio.throttle.read_bps_device", "io.max")


def cpu_limit(host):
    """Quota and period, or max."""
    if (CGROUPS / f"sc-host{host}/cpu.max").exists():
        return first_file(host, "cpu.max")
    return f'{first_file(host, "cpu.cfs_quota_us").replace("-1", "max")} {first_file(host, "cpu.cfs_period_us")}'


def usage(host):
    return {key: int(value) for key, value in (line.split() for line in lan("usage", host).stdout.splitlines())}


class Limits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        plug_hosts_together(cls, 2, "--memory", "256MiB", "--disk", "50MB", "--rate", 1000, cwd=BUILD)

    def test_every_host_has_them(self):
        for host in (1, 2):
            self.assertEqual(memory_limit(host), str(MEMORY))
            self.assertRegex(disk_limits(host), rf"^\d+:\d+ (rbps=)?{DISK}\b")
            for namespace, card in ((f"sc-host{host}", "eth0"), ("sc-switch", f"port{host}")):
                shaper = subprocess.run(["tc", "-n", namespace, "qdisc", "show", "dev", card], capture_output=True, text=True, check=True)
                self.assertRegex(shaper.stdout, r"tbf .*rate 1Gbit")

    def test_a_partition_stands_for_its_disk(self):
        device = disk_limits(1).split()[0]
        self.assertFalse(pathlib.Path(f"/sys/dev/block/{device}/partition").exists(), device)

    def test_what_runs_on_a_host_is_under_its_limits(self):
        # The shell is the host's first process, its child the second.
        groups = lan("exec", 2, "sh", "-c", "cat /proc/self/cgroup; true").stdout
        self.assertTrue(re.search(r"^\d+:memory:/sc-host2$", groups, re.MULTILINE) or "0::/sc-host2\n" in groups, groups)
        self.assertTrue(re.search(r"^\d+:blkio:/sc-host2$", groups, re.MULTILINE) or "0::/sc-host2\n" in groups, groups)

    def test_more_memory_than_the_limit_is_the_end(self):
        fits = lan("exec", 1, "python3", "-c", HOLD, MEMORY // 2)
        self.assertEqual((fits.returncode, fits.stdout), (0, "holds them\n"), fits.stderr)
        bursts = lan("exec", 1, "python3", "-c", HOLD, 2 * MEMORY)
        self.assertIn(bursts.returncode, (-9, 137), bursts.stderr)
        self.assertEqual(bursts.stdout, "")

    def test_a_model_larger_than_the_host_streams_within_its_limit(self):
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            folder = pathlib.Path(folder)
            (folder / "config.json").write_text(json.dumps(
                {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 2000, "n_positions": 128, "n_embd": 512,
                 "n_layer": 30, "n_head": 8, "activation_function": "gelu_new"}))  # 378 MB of layers
            (folder / "ids").write_text(" ".join(map(str, range(50))))
            subprocess.run([BINARY, "create", folder / "config.json", folder / "store", "--weights", "f32", "--quiet"], check=True, env=ENVIRONMENT)
            score = (BINARY, "score", "--store", folder / "store", "--ids", folder / "ids", "--json", "--quiet")
            resident = subprocess.run([*score, "--memory", "2GB"], capture_output=True, text=True, check=True, env=ENVIRONMENT)
            self.addCleanup(lan, "limit", 1, "--disk", DISK, "--disk-path", BUILD)
            lan("limit", 1, "--disk", "none", "--disk-path", BUILD)
            # What the budget does not count is the page cache, which a control group does.
            streamed = lan("exec", 1, *score, "--memory", MEMORY - (24 << 20))
            self.assertEqual(streamed.returncode, 0, streamed.stderr)
            self.assertEqual(json.loads(streamed.stdout)["logprobs"], json.loads(resident.stdout)["logprobs"])
            unaided = lan("exec", 1, *score)  # the free memory that it sees is the host's own
            self.assertEqual(unaided.returncode, 0, unaided.stderr)
            self.assertEqual(json.loads(unaided.stdout)["logprobs"], json.loads(resident.stdout)["logprobs"])

    def test_usage_tells_memory_and_reads(self):
        with tempfile.NamedTemporaryFile(dir=BUILD) as file:
            file.write(bytes(8 << 20))
            file.flush()
            before = usage(1)
            copied = lan("exec", 1, "dd", f"if={file.name}", "of=/dev/null", "bs=1M", "iflag=direct")
        if copied.returncode != 0:
            self.skipTest("no direct reads here: " + copied.stderr.strip())
        after = usage(1)
        self.assertEqual(after["memory_limit_bytes"], MEMORY)
        self.assertLessEqual(after["memory_peak_bytes"], MEMORY)
        self.assertLessEqual(after["memory_bytes"], after["memory_peak_bytes"])
        self.assertIn("rss_bytes", after)
        self.assertIn("cache_bytes", after)
        self.assertGreaterEqual(after["disk_read_bytes"] - before["disk_read_bytes"], 8 << 20)

    def test_limits_change_while_a_host_runs(self):
        self.addCleanup(lan, "limit", 2, "--memory", MEMORY, "--disk", DISK, "--rate", 1000, "--disk-path", BUILD)
        self.assertEqual(lan("limit", 2, "--memory", "512MiB", "--disk", "1MB", "--disk-path", BUILD).returncode, 0)
        self.assertEqual(memory_limit(2), str(512 << 20))
        self.assertRegex(disk_limits(2), r"\b1000000\b")
        self.assertEqual(lan("limit", 2, "--cpus", "0.5").returncode, 0)
        self.assertEqual(cpu_limit(2), "5000 10000")
        self.assertEqual(lan("limit", 2, "--memory", "none", "--disk", "none", "--rate", "none", "--cpus", "none").returncode, 0)
        self.assertEqual(cpu_limit(2), "max 10000")
        self.assertNotEqual(memory_limit(2), str(512 << 20))
        self.assertEqual(disk_limits(2), "")
        self.assertEqual(memory_limit(1), str(MEMORY))

    def test_what_is_no_limit_is_refused(self):
        for flags in (("--memory", "3X"), ("--memory", "0"), ("--memory",), ("--disk", "fast"), ("--rate", "1.5"), ("--cpus", "0"), ("--cpus", "-1"), ("--speed", "3"),
                      ("--disk", "1MB", "--disk-path", "/does/not/exist"), ()):
            refused = lan("limit", 1, *flags)
            self.assertEqual(refused.returncode, 2, (flags, refused.stderr))
            self.assertIn("lan_cluster: ", refused.stderr)
        self.assertEqual(memory_limit(1), str(MEMORY))


class Down(unittest.TestCase):
    def test_nothing_is_left(self):
        up = lan("up", 1, "--memory", "256MiB")
        if up.returncode == 77:
            self.skipTest(up.stderr.strip())
        self.addCleanup(lan, "down")
        self.assertEqual(up.returncode, 0, up.stderr)
        sleeper = subprocess.Popen([LAN, "exec", "1", "sleep", "1000"], env=ENVIRONMENT)
        self.addCleanup(sleeper.kill)
        deadline = time.monotonic() + PATIENCE
        while not lan("pids", 1).stdout:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.1)
        self.assertEqual(lan("down").returncode, 0)
        self.assertNotEqual(sleeper.wait(PATIENCE), 0)
        self.assertEqual([*CGROUPS.glob("sc-host*"), *CGROUPS.glob("*/sc-host*")], [])


if __name__ == "__main__":
    unittest.main()
