#!/usr/bin/env python3
"""Trains tests/data/demo-gptj, a small GPT-J that writes like the King James Bible.

Set-up (the tests and the quickstart need none of this, they use the committed files):

    sudo apt-get install bible-kjv bible-kjv-text
    bible -f 'Gen1:1-Rev22:21' > kjv.txt
    python3 -m venv .venv && .venv/bin/pip install -r scripts/requirements-golden.txt
    .venv/bin/python scripts/train_demo_model.py --text kjv.txt

The run is seeded and uses one thread, so that one kind of CPU gives the same file again; another
CPU rounds differently and ends in a different, equally good model. After it, run
`scripts/make_golden.py --only demo-gptj`, because its golden.json belongs to exactly these weights.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import re
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads, so it must come first

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPTJConfig, GPTJForCausalLM
from transformers.utils import logging

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
END_OF_TEXT = "<|endoftext|>"
# Seven layers share out unevenly over two, three and four ranks; five heads and rotary on half of
# each keep the shapes from being all powers of two.
SHAPE = dict(n_layer=7, n_embd=160, n_head=5, rotary_dim=16, n_positions=256)
VALIDATION_EVERY = 40  # every 40th chapter is held out
SAMPLE_PROMPTS = ("In the beginning", "And the king said unto", "Blessed are they")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True,
                        help="output of: bible -f 'Gen1:1-Rev22:21'")
    parser.add_argument("--out", type=pathlib.Path, default=REPOSITORY / "tests/data/demo-gptj")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8, help="windows of n_positions tokens a step")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=250,
                        help="steps between checkpoints, each of which overwrites the last")
    return parser.parse_args()


def read_chapters(path):
    """The text as one string a chapter and one line a verse, without the 'Ge1:1 ' references."""
    chapters = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"([1-3]?[A-Za-z]+[0-9]+):[0-9]+ (.+)", line)
        if not match:
            raise SystemExit(f"{path}:{number}: expected 'Ge1:1 In the …', found {line!r}")
        chapters.setdefault(match[1], []).append(match[2].strip())
    return ["\n".join(verses) + "\n" for verses in chapters.values()]


def train_tokenizer(chapters, vocab_size):
    """A byte-level BPE of GPT-2's kind: every byte is in the alphabet, so any text encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(chapters, trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def encode_documents(tokenizer, documents):
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = []
    for document in documents:
        ids += [end] + tokenizer.encode(document).ids
    return torch.tensor(ids + [end])


def training_batches(tokens, window, batch, generator):
    """Endless batches (batch, window + 1); each epoch cuts the text at a new phase and shuffles."""
    while True:
        phase = int(torch.randint(window, (), generator=generator))
        starts = torch.arange(phase, len(tokens) - window, window)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for group in starts.split(batch):
            if len(group) == batch:
                yield torch.stack([tokens[start:start + window + 1] for start in group.tolist()])


def loss_of(model, windows):
    logits = model(windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def validation_loss(model, tokens, window):
    """Mean nats a token over the held-out chapters, cut into windows that do not overlap."""
    cuts = torch.stack([tokens[i:i + window + 1] for i in range(0, len(tokens) - window, window)])
    losses = [loss_of(model, part) * len(part) for part in cuts.split(8)]
    return float(sum(losses) / len(cuts))


def build_model(vocab_size, end):
    # gelu_pytorch_tanh is the same function as gelu_new, fused; the saved config says gelu_new,
    # as every GPT-J's does.
    config = GPTJConfig(vocab_size=vocab_size, bos_token_id=end, eos_token_id=end,
                        activation_function="gelu_pytorch_tanh", attn_implementation="eager",
                        tie_word_embeddings=False, **SHAPE)
    model = GPTJForCausalLM(config)
    for name, parameter in model.named_parameters():
        # GPT-2's rule: what writes to the residual stream starts smaller by the depth of the sum.
        if name.endswith(("out_proj.weight", "fc_out.weight")):
            parameter.data /= math.sqrt(2 * config.n_layer)
    return model


def build_optimizer(model, arguments):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([dict(params=matrices, weight_decay=arguments.weight_decay),
                              dict(params=vectors, weight_decay=0.0)],
                             lr=arguments.learning_rate, betas=(0.9, 0.97), eps=1e-8)


def learning_rate(step, arguments):
    """Linear warm-up, then half a cosine down to a fiftieth."""
    if step < arguments.warmup:
        return arguments.learning_rate * (step + 1) / arguments.warmup
    done = (step - arguments.warmup) / max(1, arguments.steps - arguments.warmup)
    return arguments.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def save(model, tokenizer, out):
    """Writes the checkpoint as Hugging Face lays it out; the weights are rounded to f16."""
    saved = GPTJForCausalLM(model.config)
    saved.load_state_dict(model.state_dict())
    saved.config.activation_function = "gelu_new"
    saved.half().save_pretrained(out)
    saved.config.activation_function = model.config.activation_function
    (out / "model.safetensors").chmod(0o644)  # transformers makes it readable by its owner only
    tokenizer.save(str(out / "tokenizer.json"))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=END_OF_TEXT,
                    eos_token=END_OF_TEXT, unk_token=END_OF_TEXT,
                    model_max_length=SHAPE["n_positions"], clean_up_tokenization_spaces=False)
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def train(model, tokens, held_out, tokenizer, arguments):
    window = SHAPE["n_positions"]
    generator = torch.Generator().manual_seed(arguments.seed)
    batches = training_batches(tokens, window, arguments.batch, generator)
    optimizer = build_optimizer(model, arguments)
    recent, begin = [], time.monotonic()
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        loss = loss_of(model, next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent = recent[-99:] + [loss.item()]
        if (step + 1) % 20 == 0:
            rate = (step + 1) * arguments.batch * window / (time.monotonic() - begin)
            print(f"step {step + 1} of {arguments.steps}: loss {sum(recent) / len(recent):.4f}, "
                  f"{rate:.0f} tokens/s", flush=True)
        if (step + 1) % arguments.save_every == 0:
            held_out_loss = validation_loss(model, held_out, window)
            print(f"step {step + 1}: validation loss {held_out_loss:.4f}", flush=True)
            save(model, tokenizer, arguments.out)
    save(model, tokenizer, arguments.out)
    return sum(recent) / len(recent)


@torch.no_grad()
def sample(model, tokenizer, prompt):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=40,
                         temperature=0.7, max_new_tokens=80, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0], skip_special_tokens=True).strip()


def write_readme(out, facts, samples):
    quoted = "\n\n".join("> " + text.replace("\n", "  \n> ") for text in samples)
    (out / "README.md").write_text(f"""# demo-gptj

A GPT-J of {facts["parameters"]:,} parameters (f16) that writes like the King James Bible. It is small enough to
commit and to run anywhere, and real enough that the quickstart prints English. It knows no facts and follows no
instructions.

- **Shape**: {facts["shape"]}; GELU (tanh), head with bias, untied.
- **Text**: the King James Version of 1611, which is in the public domain, as Debian's package `bible-kjv-text` has
  it: `bible -f 'Gen1:1-Rev22:21' > kjv.txt` (SHA-256 `{facts["sha256"]}`).
  A chapter is a document, a verse a line; `<|endoftext|>` stands before each chapter. Every
  {VALIDATION_EVERY}th chapter is held out.
- **Tokenizer**: byte-level BPE of GPT-2's kind, {facts["vocab"]} tokens, trained on the same text.
- **Training**: `scripts/train_demo_model.py --text kjv.txt`, seed {facts["seed"]}, {facts["steps"]} steps of {facts["batch"]} × {SHAPE["n_positions"]} tokens, AdamW,
  cosine from {facts["learning_rate"]}, one CPU thread, about {facts["minutes"]} minutes of wall time.
- **Final loss**: {facts["train_loss"]:.4f} nats a token (mean of the last 100 steps); held out {facts["held_out_loss"]:.4f}, measured on the
  f16 file with float32 arithmetic.
- `golden.json` holds what Hugging Face transformers computes from these weights (`scripts/make_golden.py`).

Samples (temperature 0.7, top-k 40, seed {facts["seed"]}):

{quoted}
""", encoding="utf-8")


def main():
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    begin = time.monotonic()

    chapters = read_chapters(arguments.text)
    training = [c for i, c in enumerate(chapters) if i % VALIDATION_EVERY != VALIDATION_EVERY - 1]
    held_out = chapters[VALIDATION_EVERY - 1::VALIDATION_EVERY]
    tokenizer = train_tokenizer(training, arguments.vocab)
    tokens, held_out = (encode_documents(tokenizer, part) for part in (training, held_out))
    model = build_model(tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{len(tokens)} training tokens, {len(held_out)} held out, {parameters} parameters")
    train_loss = train(model, tokens, held_out, tokenizer, arguments)

    # What is reported is what the files give, not what the f32 model in memory gave.
    model = GPTJForCausalLM.from_pretrained(arguments.out, dtype=torch.float32,
                                            attn_implementation="eager")
    facts = dict(parameters=parameters, vocab=tokenizer.get_vocab_size(), seed=arguments.seed,
                 shape=", ".join(f"{key} {value}" for key, value in SHAPE.items()),
                 steps=arguments.steps, batch=arguments.batch, train_loss=train_loss,
                 learning_rate=arguments.learning_rate,
                 held_out_loss=validation_loss(model, held_out, SHAPE["n_positions"]),
                 minutes=round((time.monotonic() - begin) / 60),
                 sha256=hashlib.sha256(arguments.text.read_bytes()).hexdigest())
    saved_tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    torch.manual_seed(arguments.seed)
    samples = [sample(model, saved_tokenizer, prompt) for prompt in SAMPLE_PROMPTS]
    write_readme(arguments.out, facts, samples)
    print(f"final training loss {train_loss:.4f}, held out {facts['held_out_loss']:.4f}\n\n"
          + "\n\n".join(samples))


if __name__ == "__main__":
    main()
