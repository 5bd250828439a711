"""stagecoach probe, and what timings make of it."""

import json
import pathlib
import unittest

from support import SIMULATED, SIMULATED_DRIVER, StoreTest, has_driver, json_lines, run, simulated

RATES = ["memory_gb_per_s", "f32_gflop_per_s", "bf16_gflop_per_s", "int8_gop_per_s"]


class Probe(StoreTest):
    def setUp(self):
        super().setUp()
        self.cache = self.folder / "cache"
        self.environment = {"STAGECOACH_CACHE": str(self.cache)}

    def probe(self, *flags, **options):
        return run("probe", "--quick", *flags, environment=self.environment, **options)

    def time(self):
        return run("time", "--store", self.store, "--tokens", 8, "--repeat", 1, "--json", environment=self.environment)

    def test_every_limit_is_positive(self):
        (result,) = json_lines(self.succeeds(self.probe("--json", "--store", self.folder)))
        self.assertEqual(sorted(result), sorted(
            ["rank", "host", "gpus", "cpu", "isa", "threads", "f32_instructions", "bf16_instructions", "int8_instructions", "disk_gb_per_s",
             "disk_path", "probed_at"] + RATES + [rate + "_one_thread" for rate in RATES]))
        for rate in RATES:
            self.assertGreater(result[rate], 0)
            self.assertGreater(result[rate + "_one_thread"], 0)
        self.assertEqual(result["rank"], 0)
        if not has_driver():
            self.assertEqual(result["gpus"], [])
        self.assertRegex(result["probed_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        if result["disk_gb_per_s"] is not None:  # null where temporary folders lie in memory
            self.assertGreater(result["disk_gb_per_s"], 0)
            self.assertEqual(result["disk_path"], str(self.folder.resolve()))
        self.assertEqual(list(self.folder.iterdir()), [self.cache])  # no file is left behind
        kept = json.loads((self.cache / "limits.json").read_text())
        self.assertEqual((kept["format"], kept["version"]), ("stagecoach-limits", 2))
        self.assertEqual(kept["cpu"], result["cpu"])

    def test_slabs_are_read_and_left_alone(self):
        before = {path: path.stat().st_mtime_ns for path in pathlib.Path(self.store).rglob("*")}
        process = self.succeeds(self.probe("--store", self.store, "--threads", 1))
        self.assertIn("memory read", process.stdout)
        self.assertNotIn("1 threads", process.stdout)
        if not has_driver():
            self.assertIn("\n  no GPU\n", process.stdout)
            self.assertNotIn("GPU is measured", process.stderr)
        self.assertEqual({path: path.stat().st_mtime_ns for path in pathlib.Path(self.store).rglob("*")}, before)

    def test_timings_then_give_their_share(self):
        rows = json_lines(self.succeeds(self.time()))
        self.assertEqual({r["share_of_limit"] for r in rows if "layer" in r}, {None})
        limits = json_lines(self.succeeds(self.probe("--json")))[0]
        report = self.folder / "report"
        process = self.succeeds(run("time", "--store", self.store, "--tokens", 8, "--repeat", 1, "--json", "--threads", 1,
                                    "--report", report, environment=self.environment))
        for row in json_lines(process):
            if "layer" in row:
                self.assertAlmostEqual(row["share_of_limit"], max(row["gb_per_s"] / limits["memory_gb_per_s_one_thread"],
                                                                  row["gflop_per_s"] / limits["f32_gflop_per_s_one_thread"]))
        table = self.succeeds(run("time", "--store", self.store, "--tokens", 8, "--repeat", 1, environment=self.environment)).stdout
        self.assertRegex(table, r"\d %\n")
        self.assertNotIn("not probed", (report / "report.html").read_text())
        for line in (report / "layers.csv").read_text().splitlines()[1:]:
            self.assertGreater(float(line.split(",")[-1]), 0)

    def test_a_cache_that_is_damaged_foreign_or_unwritable(self):
        self.succeeds(self.probe())
        file = self.cache / "limits.json"
        good = file.read_text()

        def shares():
            process = self.succeeds(self.time())
            return {r["share_of_limit"] is None for r in json_lines(process) if "layer" in r}, process.stderr

        self.assertEqual(shares()[0], {False})
        file.write_text(good[:-20])
        missing, stderr = shares()
        self.assertEqual(missing, {True})
        self.assertEqual(stderr.count("warning"), 1, stderr)
        for words in (str(file), "stagecoach probe"):
            self.assertIn(words, stderr)
        for change in (('"version": 2', '"version": 3'), ('"cpu": "', '"cpu": "not ')):
            file.write_text(good.replace(*change))
            missing, stderr = shares()
            self.assertEqual(missing, {True})
            self.assertNotIn("warning", stderr)
        self.environment["STAGECOACH_CACHE"] = str(file)  # a file is no folder
        process = self.succeeds(self.probe("--json"))
        self.assertIn("not kept", process.stderr)
        self.assertEqual(len(json_lines(process)), 1)

    @SIMULATED
    def test_gpus(self):
        # Rates of simulated devices mean nothing; that they are there, and kept, does.
        self.environment |= simulated(devices=2) | SIMULATED_DRIVER
        (result,) = json_lines(self.succeeds(self.probe("--json")))
        self.assertEqual([gpu["gpu"] for gpu in result["gpus"]], ["GPU 0 (Simulated GPU (sm_86))", "GPU 1 (Simulated GPU (sm_86))"])
        rates = ["device_gb_per_s", "device_gflop_per_s", "device_bf16_gflop_per_s", "device_f32_gflop_per_s", "bus_gb_per_s", "bus_back_gb_per_s"]
        kept = json.loads((self.cache / "limits.json").read_text())["devices"]
        for gpu, limits in zip(result["gpus"], kept, strict=True):
            self.assertEqual(sorted(gpu), sorted(["gpu"] + rates))
            for rate in rates:
                self.assertGreater(gpu[rate], 0)
            self.assertEqual(limits["label"], gpu["gpu"])
            self.assertAlmostEqual(limits["to_device_bytes_per_second"], gpu["bus_gb_per_s"] * 1e9, delta=1)
        # A run on a GPU then gives shares of that one's limits, of one that was not probed none.
        def shares(device):
            process = self.succeeds(run("time", "--store", self.store, "--tokens", 2, "--repeat", 1, "--json", "--device", device,
                                        environment=self.environment))
            return {r["share_of_limit"] is None for r in json_lines(process) if "layer" in r}
        self.assertEqual(shares("cuda:1"), {False})
        kept = (self.cache / "limits.json").read_text()
        (self.cache / "limits.json").write_text(kept.replace("GPU 1 (", "GPU 7 ("))
        self.assertEqual(shares("cuda:1"), {True})

    @SIMULATED
    def test_the_table_of_a_gpu_without_bf16(self):
        self.environment |= simulated(capability=75) | SIMULATED_DRIVER
        table = self.succeeds(self.probe()).stdout
        self.assertIn("  GPU 0 (Simulated GPU (sm_75))\n", table)
        for words in ("memory read", "from the host", "to the host", "f32 products", "f16 products"):
            self.assertRegex(table[table.index("GPU 0"):], words + r" +G[A-Z]+/s +[0-9.]+")
        self.assertRegex(table, r"bf16 products +GFLOP/s +- +not on this GPU")

    @SIMULATED
    def test_gpus_that_cannot_be_used_are_one_line(self):
        for settings, words in (({"driver": 11080}, "no GPU is measured: the NVIDIA driver serves CUDA 11.8, this build needs "),
                                ({"devices": 0}, "no GPU is measured: this PC has an NVIDIA driver, and no GPU that CUDA can use"),
                                ({"capability": 61}, "GPU 0 is not measured: GPU 0 (Simulated GPU (sm_61)) has compute capability 6.1"),
                                ({"faults": "cudaHostAlloc:1:cudaErrorMemoryAllocation"}, "GPU 0 is not measured: allocating page-locked memory failed")):
            with self.subTest(words):
                environment = self.environment | simulated(**settings) | SIMULATED_DRIVER
                process = self.succeeds(run("probe", "--quick", environment=environment))
                self.assertIn("\n  no GPU\n", process.stdout)
                (warning,) = [line for line in process.stderr.splitlines() if " warning" in line]
                self.assertIn(words, warning)
        # The others are measured all the same.
        environment = self.environment | simulated(devices=2, faults="cudaHostAlloc:1:cudaErrorMemoryAllocation") | SIMULATED_DRIVER
        (result,) = json_lines(self.succeeds(run("probe", "--quick", "--json", environment=environment)))
        self.assertEqual([gpu["gpu"] for gpu in result["gpus"]], ["GPU 1 (Simulated GPU (sm_86))"])

    def test_errors(self):
        self.fails(self.probe("--store", self.folder / "none"), 3, "none", "--store")
        (self.folder / "broken").mkdir()
        (self.folder / "broken/manifest.json").write_text("{")
        self.fails(self.probe("--store", self.folder / "broken"), 3, "manifest.json")
        self.fails(self.probe("--threads", 0), 2, "--threads")
        # Nobody can make a file there, root neither.
        self.fails(self.probe("--store", "/proc"), 4, "/proc")


if __name__ == "__main__":
    unittest.main()
