"""Whole jobs under mpirun: the same results on every number of ranks, one message and one exit code."""

import csv
import json
import shutil
import subprocess
import unittest

from support import BINARY, DEMO, ENVIRONMENT, REFERENCE, StoreTest, json_lines, mpirun, run

GOLDEN = json.loads((DEMO / "golden.json").read_text())


class Jobs(StoreTest):
    def test_greedy_text_is_byte_exact_on_one_to_four_ranks(self):
        case = GOLDEN["greedy"][0]
        for ranks in (1, 2, 3, 4):
            process = self.succeeds(run("generate", "--store", self.store, "--prompt", case["prompt"], "--greedy",
                                        "--max-new-tokens", len(case["ids"]), *REFERENCE, ranks=ranks))
            self.assertEqual(process.stdout, case["text"] + "\n")

    def test_scores_have_the_same_bits(self):
        text = self.folder / "text"
        text.write_text(GOLDEN["greedy"][0]["prompt"] + GOLDEN["greedy"][0]["text"])
        results = [json_lines(self.succeeds(run("score", "--store", self.store, "--text", text, "--json", *flags, ranks=ranks)))[0]
                   for ranks, flags in ((0, ()), (2, ("--rounds", 2)), (3, ("--threads", 2, "--micro-batch", 5)), (4, ("--windows", "0:1,1:2,2:5,5:7")))]
        for result in results[1:]:
            self.assertEqual(result["logprobs"], results[0]["logprobs"])

    def test_every_kv_type_gives_the_same_bits_on_one_to_four_ranks(self):
        text = self.folder / "text"
        text.write_text(GOLDEN["greedy"][0]["prompt"] + GOLDEN["greedy"][0]["text"])
        for kv in ("f16", "q8"):
            scores = [json_lines(self.succeeds(run("score", "--store", self.store, "--text", text, "--json", "--kv", kv, *flags, ranks=ranks)))[0]
                      for ranks, flags in ((0, ()), (2, ("--micro-batch", 5)), (4, ("--threads", 2)))]
            for score in scores[1:]:
                self.assertEqual(score["logprobs"], scores[0]["logprobs"], kv)

    def test_a_q4_store_gives_the_same_text_on_one_to_four_ranks(self):
        store = self.folder / "q4"
        self.succeeds(run("import", DEMO, store, "--weights", "q4", "--quiet"))
        texts = {self.succeeds(run("generate", "--store", store, "--prompt", "And God said", "--max-new-tokens", 20, "--seed", 3, ranks=ranks)).stdout
                 for ranks in (1, 2, 3, 4)}
        self.assertEqual(len(texts), 1)

    def test_many_prompts_and_sampling_have_the_same_ids(self):
        prompts = self.folder / "prompts"
        prompts.write_text("In the beginning\nAnd God said\nWoe\nBlessed are the poor\nThe king\nA\n")
        flags = ("--prompts", prompts, "--max-new-tokens", 15, "--top-p", 0.7, "--seed", 5, "--repetition-penalty", 1.2, "--json")
        alone = [r["ids"] for r in json_lines(self.succeeds(run("generate", "--store", self.store, *flags)))]
        for ranks, more in ((2, ()), (4, ("--max-sequences", 2))):
            self.assertEqual([r["ids"] for r in json_lines(self.succeeds(run("generate", "--store", self.store, *flags, *more, ranks=ranks)))], alone)

    def test_each_rank_reads_its_own_slice(self):
        # Ranks share this store here; the plan decides what each one opens.
        rows = json_lines(self.succeeds(run("time", "--store", self.store, "--tokens", 32, "--repeat", 2, "--json", "--windows", "0:3,3:4,4:7", ranks=3)))
        self.assertEqual([r["rank"] for r in rows if "layer" in r], [0, 0, 0, 1, 2, 2, 2])

    def test_a_sweep_runs_on_all_ranks_and_names_what_fails(self):
        table = self.folder / "sweep.csv"
        process = run("time", "--store", self.store, "--tokens", "4,300", "--windows", "0:3,3:7", "--windows", "0:5,5:7", "--repeat", 1,
                      "--csv", table, "--report", self.folder / "report", ranks=2)
        self.assertEqual(process.returncode, 2, process.stderr)
        for windows in ("0:3,3:7", "0:5,5:7"):
            self.assertIn(f"stagecoach: windows {windows}, tokens 300: ", process.stderr)
        with open(table, newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([(r["windows"], r["ranks"], r["tokens"]) for r in rows if not r["layer"]],
                         [("0:3,3:7", "2", "4"), ("0:5,5:7", "2", "4")])
        self.assertEqual([r["rank"] for r in rows if r["layer"]], list("0001111") + list("0000011"))
        summary = json.loads((self.folder / "report/001/run.json").read_text())
        self.assertEqual([r["layers"] for r in summary["ranks"]], ["0:3", "3:7"])
        sent, received = ([r[key] for r in summary["ranks"]] for key in ("sent_bytes", "received_bytes"))
        self.assertEqual(sent, received[::-1])  # what one sends the other receives
        self.assertIn("waiting for a rank", (self.folder / "report/001/report.html").read_text())

    def test_probe_of_two_ranks(self):
        cache = {"STAGECOACH_CACHE": str(self.folder / "cache")}
        *ranks, network = json_lines(self.succeeds(run("probe", "--quick", "--json", ranks=2, environment=cache)))
        self.assertEqual([r["rank"] for r in ranks], [0, 1])
        for rank in ranks:
            self.assertGreater(rank["memory_gb_per_s"], 0)
        self.assertEqual([(link["from"], link["to"]) for link in network["network"]], [(0, 1), (1, 0)])
        for link in network["network"]:
            self.assertGreater(link["latency_us"], 0)
            self.assertGreater(link["gb_per_s"], 0)
        kept = json.loads((self.folder / "cache/limits.json").read_text())
        self.assertEqual([link["to"] for link in kept["links"]], [ranks[0]["host"]])
        rows = json_lines(self.succeeds(run("time", "--store", self.store, "--tokens", 8, "--repeat", 1, "--json", ranks=2, environment=cache)))
        for row in rows:
            if "layer" in row:
                self.assertGreater(row["share_of_limit"], 0)
        self.fails(run("probe", "--quick", "--store", self.folder / "none", ranks=2, environment=cache), 3, "none")

    def test_bf16_on_the_wire(self):
        self.succeeds(run("generate", "--store", self.store, "--prompt", "And", "--wire", "bf16", "--max-new-tokens", 4, ranks=2))

    def test_errors_are_one_message_and_one_code(self):
        self.fails(run("generate", "--store", self.store, "--prompt", "a", ranks=8), 2, "8 ranks", "7")
        self.fails(run("generate", "--store", self.store, "--prompt", "word " * 300, ranks=3), 2, "context")
        self.fails(run("generate", "--store", self.folder / "none", "--prompt", "a", ranks=3), 3, "none")
        self.fails(run("generate", "--store", self.store, "--nonsense", ranks=2), 2, "--nonsense")
        broken = self.folder / "broken"
        shutil.copytree(self.store, broken)
        slab = broken / "layer-005.slab"
        data = bytearray(slab.read_bytes())
        data[8192] ^= 1
        slab.write_bytes(data)
        self.fails(run("generate", "--store", broken, "--prompt", "a", ranks=3), 3, "layer-005.slab", "rank 2")

    def test_ranks_with_different_stores(self):
        other = self.folder / "other"
        self.succeeds(run("import", DEMO, other, "--weights", "f32", "--quiet"))
        changed = self.folder / "changed"
        self.succeeds(run("create", DEMO / "config.json", changed, "--weights", "f16", "--quiet"))
        for store in (other, changed):
            # Each rank looks up its own path, as hosts with different disks would.
            script = f'if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then S={store}; else S={self.store}; fi; exec "$0" generate --store $S --prompt a'
            process = run_shell(script, ranks=2)
            self.fails(process, 3, "rank 1")

    def test_ranks_with_different_flags(self):
        script = f'exec "$0" generate --store {self.store} --prompt a --windows 0:$((3 + OMPI_COMM_WORLD_RANK)),$((3 + OMPI_COMM_WORLD_RANK)):7'
        self.fails(run_shell(script, ranks=2), 3, "rank 1", "plan")

    def test_ranks_with_different_kv_types(self):
        script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && export STAGECOACH_KV=q8; exec "$0" generate --store {self.store} --prompt a'
        self.fails(run_shell(script, ranks=2), 3, "rank 1", "flags differ")

    def test_ranks_with_different_commands(self):
        text = self.folder / "text"
        text.write_text("In the beginning")
        commands = {"score": ["score", "--store", self.store, "--text", text], "probe": ["probe", "--quick"],
                    "generate": ["generate", "--store", self.store, "--prompt", "A"]}
        for first, second in (("score", "probe"), ("probe", "generate"), ("generate", "score")):
            line = mpirun(1) + [BINARY, *commands[first], ":", "-np", "1", BINARY, *commands[second]]
            process = subprocess.run([str(word) for word in line], capture_output=True, text=True, timeout=60, check=False,
                                     cwd=self.folder, env=ENVIRONMENT)
            self.fails(process, 3, f"runs stagecoach {second}", f"runs stagecoach {first}")

    def test_settings_that_are_wrong_on_one_rank(self):
        for setting in ("STAGECOACH_JOB=/nonexistent.toml", "STAGECOACH_MICRO_BATCH=x"):
            script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && export {setting}; exec "$0" generate --store {self.store} --prompt a'
            self.fails(run_shell(script, ranks=3), 2, "rank 1", setting.split("=")[1])

    def test_commands_that_are_one_process(self):
        self.fails(run("import", DEMO, self.folder / "store", ranks=2), 2, "without mpirun")

    def test_without_the_mpi_module(self):
        modules = {"STAGECOACH_MODULES": str(self.folder)}
        self.succeeds(run("generate", "--store", self.store, "--prompt", "a", "--max-new-tokens", 2, environment=modules))
        self.fails(run("generate", "--store", self.store, "--prompt", "a", ranks=2, environment=modules), 4, "mpi module", "openmpi")

    def test_different_instruction_sets_are_a_warning(self):
        other = "unset STAGECOACH_ISA" if ENVIRONMENT.get("STAGECOACH_ISA") == "scalar" else "export STAGECOACH_ISA=scalar"
        script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && {other}; exec "$0" generate --store {self.store} --prompt a --max-new-tokens 2'
        process = self.succeeds(run_shell(script, ranks=2))
        self.assertIn("results depend on how layers are split", process.stderr)


def run_shell(script, ranks):
    import subprocess
    from support import BINARY, ENVIRONMENT, TIMEOUT, mpirun
    return subprocess.run(mpirun(ranks) + ["sh", "-c", script, BINARY], capture_output=True, text=True, timeout=TIMEOUT,
                          env=ENVIRONMENT, check=False)


if __name__ == "__main__":
    unittest.main()
