#!/usr/bin/env python3
"""Times decode steps of GPT-J (random weights, f16, one prompt) in Hugging Face transformers, its layers split evenly over the
cards, and prints a line of JSON: what Stagecoach's split of a single prompt is compared with. Needs PyTorch, transformers and,
for several cards, accelerate."""

import argparse
import inspect
import json
import statistics
import time

import torch
from transformers import DynamicCache, GPTJConfig, GPTJForCausalLM


def cards_of(flags):
    if flags.device == "cpu":
        return [torch.device("cpu")]
    return [torch.device("cuda", i) for i in range(min(flags.cards, torch.cuda.device_count()))]


def uninitialised_model(config):
    """On the host, where drawing six billion numbers would take longer than all else."""
    GPTJForCausalLM._init_weights = torch.nn.Linear.reset_parameters = torch.nn.Embedding.reset_parameters = lambda *_: None
    torch.set_default_dtype(torch.float16)
    return GPTJForCausalLM(config).eval()


def split(model, cards):
    """Layers in equal runs, what comes before with the first, the head with the last."""
    if len(cards) > 1:
        from accelerate import dispatch_model
        layers = len(model.transformer.h)
        places = {f"transformer.{name}": 0 for name, _ in model.transformer.named_children() if name != "h"}
        places.update({f"transformer.h.{i}": i * len(cards) // layers for i in range(layers)})
        places.update({"transformer.ln_f": len(cards) - 1, "lm_head": len(cards) - 1})
        model = dispatch_model(model, places)
    else:
        model = model.to(cards[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


@torch.inference_mode()
def step_seconds(model, card, tokens, repeat):
    """Of each decode step behind a prompt of so many tokens, after three that are not measured."""
    keyword = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = {keyword: DynamicCache()}
    ids = torch.randint(0, model.config.vocab_size, (1, tokens), device=card)
    seconds = []
    for step in range(1 + 3 + repeat):
        begin = time.perf_counter()
        logits = model(ids, use_cache=True, **cache).logits
        ids = logits[:, -1:].argmax(-1).to(card)
        ids.item()  # the step is done
        if step > 3:
            seconds.append(time.perf_counter() - begin)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cards", type=int, default=4, help="at most so many of them")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--tokens", type=int, default=128, help="of the prompt")
    parser.add_argument("--repeat", type=int, default=40, help="measured steps")
    flags = parser.parse_args()
    cards = cards_of(flags)
    model = split(uninitialised_model(GPTJConfig(n_layer=flags.layers)), cards)
    seconds = statistics.median(step_seconds(model, cards[0], flags.tokens, flags.repeat))
    print(json.dumps({"cards": len(cards), "layers": flags.layers, "ms": seconds * 1000, "tokens_per_second": 1 / seconds}))


if __name__ == "__main__":
    main()
