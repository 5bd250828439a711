"""stagecoach probe, and what timings make of it."""

import json
import pathlib
import unittest

from support import StoreTest, json_lines, run

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
            ["rank", "host", "cpu", "isa", "threads", "f32_instructions", "bf16_instructions", "int8_instructions", "disk_gb_per_s",
             "disk_path", "probed_at"] + RATES + [rate + "_one_thread" for rate in RATES]))
        for rate in RATES:
            self.assertGreater(result[rate], 0)
            self.assertGreater(result[rate + "_one_thread"], 0)
        self.assertEqual(result["rank"], 0)
        self.assertRegex(result["probed_at"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        if result["disk_gb_per_s"] is not None:  # null where temporary folders lie in memory
            self.assertGreater(result["disk_gb_per_s"], 0)
            self.assertEqual(result["disk_path"], str(self.folder.resolve()))
        self.assertEqual(list(self.folder.iterdir()), [self.cache])  # no file is left behind
        kept = json.loads((self.cache / "limits.json").read_text())
        self.assertEqual((kept["format"], kept["version"]), ("stagecoach-limits", 1))
        self.assertEqual(kept["cpu"], result["cpu"])

    def test_slabs_are_read_and_left_alone(self):
        before = {path: path.stat().st_mtime_ns for path in pathlib.Path(self.store).rglob("*")}
        process = self.succeeds(self.probe("--store", self.store, "--threads", 1))
        self.assertIn("memory read", process.stdout)
        self.assertNotIn("1 threads", process.stdout)
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
            self.assertGreater(float(line.split(",")[-2]), 0)

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
        for change in (('"version": 1', '"version": 2'), ('"cpu": "', '"cpu": "not ')):
            file.write_text(good.replace(*change))
            missing, stderr = shares()
            self.assertEqual(missing, {True})
            self.assertNotIn("warning", stderr)
        self.environment["STAGECOACH_CACHE"] = str(file)  # a file is no folder
        process = self.succeeds(self.probe("--json"))
        self.assertIn("not kept", process.stderr)
        self.assertEqual(len(json_lines(process)), 1)

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
