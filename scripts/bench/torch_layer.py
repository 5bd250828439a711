"""Times one GPT-3 block in PyTorch and prints a line of JSON. Runs under the Python that has PyTorch (rivals.py starts
it); the block is written out, as Linear, LayerNorm, scaled_dot_product_attention and GELU, so that nothing but them is
measured."""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn import functional

TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class Block(nn.Module):
    """GPT-3's block with a cache of keys and values of a given length, which lies in the weights' type."""

    def __init__(self, width, heads, mlp):
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp), nn.Linear(mlp, width)

    def forward(self, hidden, keys, values, position):
        """hidden: (batch, rows, width); keys and values: (batch, heads, positions, head)."""
        batch, rows, width = hidden.shape
        split = self.qkv(self.attention_norm(hidden)).view(batch, rows, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
        keys[:, :, position:position + rows] = split[1]
        values[:, :, position:position + rows] = split[2]
        mixed = functional.scaled_dot_product_attention(split[0], keys[:, :, :position + rows], values[:, :, :position + rows],
                                                        is_causal=rows > 1)
        hidden = hidden + self.output(mixed.transpose(1, 2).reshape(batch, rows, width))
        return hidden + self.down(functional.gelu(self.up(self.mlp_norm(hidden)), approximate="tanh"))


def random_block(flags):
    """Weights are copies of a million random ones: drawing all of them takes longer than measuring."""
    torch.set_default_dtype(TYPES[flags.weights])
    with torch.device("meta"):
        block = Block(flags.width, flags.heads, flags.mlp)
    block = block.to_empty(device="cpu").eval()
    source = torch.empty(1 << 20).uniform_(-0.03, 0.03)
    for parameter in block.parameters():
        flat = parameter.data.view(-1)
        for begin in range(0, flat.numel(), source.numel()):
            flat[begin:begin + source.numel()] = source[:flat.numel() - begin]
    return block


def timed(block, flags):
    """Seconds of each measured pass, after one that is not."""
    rows, position = (flags.tokens, 0) if flags.phase == "prefill" else (1, flags.tokens)
    hidden = torch.empty(flags.batch, rows, flags.width).uniform_(-1, 1)
    cache = [torch.empty(flags.batch, flags.heads, position + rows, flags.width // flags.heads).uniform_(-1, 1) for _ in range(2)]
    seconds = []
    for _ in range(1 + flags.repeat):
        begin = time.perf_counter()
        block(hidden, *cache, position)
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", choices=TYPES, required=True)
    parser.add_argument("--phase", choices=("prefill", "decode"), required=True)
    for name in ("width", "heads", "mlp", "tokens", "batch", "repeat", "threads"):
        parser.add_argument("--" + name, type=int, required=True)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    with torch.inference_mode():
        seconds = timed(random_block(flags), flags)
    print(json.dumps({"version": torch.__version__, "threads": torch.get_num_threads(), "ms": [1e3 * s for s in seconds]}))


if __name__ == "__main__":
    main()
