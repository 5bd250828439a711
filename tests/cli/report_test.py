"""Reports, their comparison, and sweeps of `time`: what the files hold, without a browser."""

import csv
import html.parser
import json
import re
import shutil
import unittest
import xml.etree.ElementTree

from support import DEMO, StoreTest, json_lines, run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
    """Fails on tags that do not nest; keeps what a test looks at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.addresses = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open, self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


class Reports(StoreTest):
    def check_page(self, path):
        text = path.read_text()
        self.assertLess(len(text), 3_000_000)
        page = Page(text)
        self.assertEqual(page.addresses, [])
        self.assertNotRegex(text, r"https?://|@import|url\(")
        self.assertEqual(page.tags.count("script"), 1)
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            xml.etree.ElementTree.fromstring(svg)
        return page

    def report(self, name, *flags, store=None):
        folder = self.folder / name
        self.succeeds(run("time", "--store", store or self.store, "--tokens", 12, "--repeat", 2, "--report", folder, *flags))
        return folder

    def test_the_page_stands_alone(self):
        page = self.check_page(self.report("r", "--phase", "both", "--batch", 2) / "report.html")
        for words in ("demo-gptj", "What the time went into", "rank 0's", "not probed", "One prefill pass", "One decode pass",
                      "The whole run", "Memory and bytes of each rank"):
            self.assertIn(words, page.text)
        self.assertEqual(page.tags.count("svg"), 3)
        summary = json.loads((self.folder / "r/run.json").read_text())
        self.assertEqual((summary["format"], summary["version"], summary["command"]), ("stagecoach-run", 4, "time"))
        self.assertEqual([p["phase"] for p in summary["phases"]], ["prefill", "decode"])
        self.assertGreater(summary["ranks"][0]["peak_bytes"], summary["ranks"][0]["weights_bytes"])

    def test_generate_and_score_write_one_too(self):
        ids = self.folder / "ids"
        ids.write_text("1 2 3 4")
        for name, flags in (("g", ("generate", "--prompt", "And", "--max-new-tokens", 4)), ("s", ("score", "--ids", ids))):
            self.succeeds(run(flags[0], "--store", self.store, *flags[1:], "--report", self.folder / name))
            self.check_page(self.folder / name / "report.html")
            self.assertGreater(json.loads((self.folder / name / "run.json").read_text())["tokens_per_second"], 0)

    def test_a_hostile_name_stays_text(self):
        store = self.folder / "store"
        name = "</title></script><script>alert(1)</script>\"'&"
        self.succeeds(run("create", "tiny-llama", store, "--name", name, "--quiet"))
        page = self.check_page(self.report("r", store=store) / "report.html")
        self.assertIn(name, page.text)

    def streamed_store(self):
        """A random model whose layers (170 MB, in four slabs) are worth more than the process itself."""
        config = self.folder / "config.json"
        config.write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 256, "n_positions": 128,
                                      "n_embd": 768, "n_layer": 12, "n_head": 12, "activation_function": "gelu_new",
                                      "layer_norm_epsilon": 1e-5}))
        store = self.folder / "streamed"
        self.succeeds(run("create", config, store, "--weights", "f16", "--distinct-layers", 4, "--quiet"))
        refusal = run("time", "--store", store, "--tokens", 8, "--memory", "1MB", ranks=2)
        self.fails(refusal, 4, "try: --memory ")
        smallest = int(re.search(r"--memory (\d+)MB", refusal.stderr).group(1))
        return store, f"{smallest + 8}MB"

    def test_a_streamed_run_says_what_its_disks_did(self):
        store, memory = self.streamed_store()
        folder = self.folder / "r"
        flags = ("time", "--store", store, "--tokens", 8, "--phase", "both", "--repeat", 2, "--memory", memory)
        table = self.succeeds(run(*flags, ranks=2)).stdout
        for words in ("critical path of prefill: rank ", "critical path of decode: rank ", " % of the step", "12 layers share 4 slabs"):
            self.assertIn(words, table)
        summaries = [o for o in json_lines(self.succeeds(run(*flags, "--json", "--report", folder, ranks=2))) if o.get("summary")]
        for summary in summaries:
            self.assertIn("rank ", summary["critical_path"])
            self.assertEqual([r["rank"] for r in summary["ranks_detail"]], [0, 1])
            for rank in summary["ranks_detail"]:
                parts = sum(v for k, v in rank.items() if k.endswith("_ms") and k not in ("wall_ms", "disk_ms"))
                self.assertAlmostEqual(parts, rank["wall_ms"], delta=1e-6 * rank["wall_ms"])
                self.assertGreater(rank["read_bytes"], 0)
                self.assertLessEqual(rank["disk_busy"], 1)
                self.assertLessEqual(rank["disk_busy"], rank["busy"] + 1e-9)
                self.assertIsNone(rank["share_of_disk"])
        page = self.check_page(folder / "report.html")
        for words in ("12 layers share 4 slabs", "disk busy", "of the step", "reading"):
            self.assertIn(words, page.text)
        saved = json.loads((folder / "run.json").read_text())
        self.assertEqual([(s["phase"], s["critical_path"]) for s in saved["splits"]],
                         [(s["phase"], s["critical_path"]) for s in summaries])
        self.assertEqual((saved["model_layers"], saved["distinct_layers"]), (12, 4))
        about = json.loads((folder / "trace.json").read_text())["otherData"]
        self.assertIn("12 layers share 4 slabs", about["note"])
        with open(folder / "layers.csv", newline="") as file:
            decode = [float(row["read_ms"]) for row in csv.DictReader(file) if row["phase"] == "decode"]
        self.assertEqual(len(decode), 12)
        self.assertGreater(sum(ms > 0 for ms in decode), 0)
        self.assertIn("12 layers share 4 slabs", self.succeeds(run("report", folder, folder)).stdout)
        # A report of a version that knew no splits.
        saved["version"] = 1
        del saved["splits"], saved["kv"]
        for rank in saved["ranks"]:
            for key in ("inputs", "device", "device_weights_bytes", "device_kv_bytes"):
                del rank[key]
        (folder / "run.json").write_text(json.dumps(saved))
        self.succeeds(run("report", folder))

    def test_score_and_generate_end_with_the_same_tables(self):
        store, _ = self.streamed_store()
        ids = self.folder / "ids"
        ids.write_text("1 2 3 4")
        for flags in (("generate", "--prompt", "And", "--max-new-tokens", 3), ("score", "--ids", ids)):
            stderr = self.succeeds(run(flags[0], "--store", store, *flags[1:])).stderr
            for words in ("wall ms", "critical path of prefill: rank 0's ", "note: the store's 12 layers share 4 slabs"):
                self.assertIn(words, stderr)

    def test_comparison(self):
        first, second = self.report("a", "--phase", "both"), self.report("b", "--threads", 1)
        table = self.succeeds(run("report", first, second)).stdout
        self.assertIn("against", table)
        objects = json_lines(self.succeeds(run("report", first, second, "--json", "--html", self.folder / "c.html")))
        self.assertEqual([o["name"] for o in objects], [str(first), str(second)])
        self.assertGreater(objects[0]["decode"]["layer_ms"], 0)
        self.assertIsNone(objects[1]["decode"])
        self.assertIsNone(objects[0]["difference"])
        self.assertTrue(objects[1]["difference"])
        self.assertIn("2 runs side by side", self.check_page(self.folder / "c.html").text)

    def test_bad_folders_are_one_error(self):
        good = self.report("good")
        self.fails(run("report", good, self.folder / "none"), 3, "none", "--report")
        (self.folder / "empty").mkdir()
        self.fails(run("report", self.folder / "empty"), 3, "run.json")
        self.fails(run("report"), 2)

        def broken(file, change, *words):
            bad = self.folder / "bad"
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(good, bad)
            text = (bad / file).read_text()
            self.assertNotEqual(change(text), text)
            (bad / file).write_text(change(text))
            self.fails(run("report", good, bad), 3, *words)

        broken("layers.csv", lambda t: t.replace("wait_ms", "waits"), "layers.csv:1:", "version")
        broken("layers.csv", lambda t: t[:-9], "layers.csv:8:", "cut off")
        broken("layers.csv", lambda t: t.replace(",prefill,", ",prefill,-", 1), "layers.csv:2:", "ms")
        broken("run.json", lambda t: t.replace('"version": 4', '"version": 5'), "run.json", "version 1 to 4, found 5")
        broken("run.json", lambda t: t[:100], "run.json")
        (self.folder / "bad/layers.csv").unlink()
        self.fails(run("report", self.folder / "bad"), 3)


class Sweeps(StoreTest):
    def rows(self, path):
        with open(path, newline="") as file:
            return list(csv.DictReader(file))

    def test_lists_on_the_command_line(self):
        table = self.folder / "table.csv"
        process = self.succeeds(run("time", "--store", self.store, "--tokens", "4,8", "--threads", "1,2", "--phase", "both", "--repeat", 3,
                                    "--json", "--csv", table, "--report", self.folder / "r"))
        self.assertIn("combination 4 of 4: threads 2, tokens 8", process.stderr)
        summaries = [o for o in json_lines(process) if o.get("summary")]
        self.assertEqual([(o["combination"], o["threads"], o["tokens"], o["phase"]) for o in summaries],
                         [(1 + i // 2, (1, 2)[i // 4], (4, 8)[i // 2 % 2], ("prefill", "decode")[i % 2]) for i in range(8)])
        for summary in summaries:
            self.assertLessEqual(summary["ms_q1"], summary["ms"])
            self.assertLessEqual(summary["ms"], summary["ms_q3"])
        rows = self.rows(table)
        self.assertEqual(len(rows), 4 * 2 * (1 + 7))
        passes = [r for r in rows if not r["layer"]]
        self.assertEqual([(float(r["ms"]), r["weights"], r["windows"]) for r in passes], [(o["ms"], "f16", "0:7") for o in summaries])
        self.assertEqual((self.folder / "r/sweep.csv").read_text(), table.read_text())
        # Every combination left a report of its own.
        self.assertEqual(len(json_lines(self.succeeds(run("report", *sorted((self.folder / "r").glob("0*")), "--json")))), 4)

    def test_lists_in_the_job_file_and_stores_by_weights(self):
        for weights in ("f16", "f32"):
            self.succeeds(run("import", DEMO, self.folder / f"demo-{weights}", "--weights", weights, "--quiet"))
        job = self.folder / "job.toml"
        job.write_text(f'[run]\nstore = "{self.folder}/demo-{{weights}}"\nweights = ["f16", "f32"]\ntokens = [4, 6]\nbatch = 2\n'
                       f'micro_batch = [2, 4]\nrepeat = 1\ncsv = "{self.folder}/t.csv"\n')
        self.succeeds(run("time", "--job", job))
        passes = [r for r in self.rows(self.folder / "t.csv") if not r["layer"]]
        self.assertEqual([(r["weights"], r["micro_batch"], r["tokens"]) for r in passes],
                         [(w, m, t) for w in ("f16", "f32") for m in "24" for t in "46"])
        self.assertTrue(all(r["store"].endswith(r["weights"]) for r in passes))
        (self.folder / "demo-bf16").symlink_to(self.folder / "demo-f16")
        self.fails(run("time", "--store", self.folder / "demo-{weights}", "--weights", "bf16", "--tokens", 4), 3, "bf16", "f16")

    def test_a_combination_that_fails_is_named_and_the_others_run(self):
        table = self.folder / "t.csv"
        process = run("time", "--store", self.store, "--tokens", "4,300,8", "--repeat", 1, "--csv", table)
        self.fails(process, 2, "stagecoach: tokens 300: ", "256")
        self.assertEqual([r["tokens"] for r in self.rows(table) if not r["layer"]], ["4", "8"])
        self.assertIn("tokens 8: prefill", process.stdout)

    def test_lists_that_make_no_sense(self):
        self.fails(run("time", "--store", self.store, "--tokens", "4,4"), 2, "--tokens", "twice")
        self.fails(run("time", "--store", self.store, "--tokens", "4,x"), 2, "x")
        self.fails(run("time", "--store", self.store, "--tokens", 4, "--weights", "f16"), 2, "{weights}")
        self.fails(run("time", "--store", "s-{weights}", "--tokens", 4), 2, "--weights")
        self.fails(run("time", "--store", self.store, "--tokens", 4, "--csv", self.folder / "none/of/this/t.csv",
                       environment={"STAGECOACH_THREADS": "0"}), 2, "STAGECOACH_THREADS")


if __name__ == "__main__":
    unittest.main()
