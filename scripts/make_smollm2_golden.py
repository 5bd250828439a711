#!/usr/bin/env python3
"""Writes tests/data/smollm2/golden.json: what Hugging Face transformers computes from SmolLM2's GGUF file.

    scripts/get_model.sh smollm2
    .venv/bin/python scripts/make_smollm2_golden.py build/models/smollm2-135m-instruct.gguf

transformers decodes the file's blocks itself (through the gguf package), to float32; eager attention, one thread. The
fixture holds a paragraph with the log-probability of each of its tokens, and a prompt with its greedy continuation. The
tolerance is eight times the distance between these log-probabilities and the same model's in float64: float32's rounding
as measured, for another order of the same sums. Needs scripts/requirements-golden.txt.
"""

import json
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The capital of France is"
PARAGRAPH = (
    "A stagecoach is a four-wheeled public transport coach used to carry paying passengers and light packages on "
    "journeys long enough to need a change of horses. It is strongly sprung and generally drawn by four horses, "
    "although some versions are drawn by six.\n\nThe business of running stagecoaches was known as staging. Familiar "
    "images of the stagecoach are that of a Royal Mail coach passing through a turnpike gate in 1784.")

NEW_TOKENS = 24


def load(file, dtype):
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32,
                                                attn_implementation="eager").to(dtype).eval()


@torch.no_grad()
def log_probabilities(model, ids):
    """ln P(ids[i + 1] | ids[:i + 1])"""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    return logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]


@torch.no_grad()
def greedy(model, prompt):
    ids, margins = list(prompt), []
    for _ in range(NEW_TOKENS):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        ids.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
    return ids[len(prompt):], min(margins)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    file = pathlib.Path(sys.argv[1]).resolve()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    prompt, paragraph = tokenizer.encode(PROMPT), tokenizer.encode(PARAGRAPH)
    model = load(file, torch.float32)
    chosen, (continuation, margin) = log_probabilities(model, paragraph), greedy(model, prompt)
    deviation = float((log_probabilities(load(file, torch.float64), paragraph) - chosen).abs().max())
    tolerance = 8 * deviation
    if margin < 10 * tolerance:
        raise SystemExit(f"a greedy decision is as close as {margin}, with a tolerance of {tolerance}")
    golden = dict(prompt=PROMPT, prompt_ids=prompt, greedy=continuation, smallest_margin=margin, text=PARAGRAPH,
                  ids=paragraph, logprobs=[None] + chosen.tolist(), float64_deviation=deviation, tolerance=tolerance)
    folder = pathlib.Path(__file__).resolve().parent.parent / "tests/data/smollm2"
    folder.mkdir(exist_ok=True)
    (folder / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"{len(paragraph)} tokens, float64 differs by {deviation:.1e}, smallest margin {margin:.1e}: "
          f"{tokenizer.decode(continuation)!r}")


if __name__ == "__main__":
    main()
