"""Writes GGUF files with random weights for timing llama.cpp: it needs shapes and types, the values do not matter.
The format is little more than a table of tensors, so the standard library does, and a file of any size is written
from a few megabytes of memory: one block of random weights, over and over."""

import random
import struct

ALIGNMENT = 32
PATTERN_WEIGHTS = 32 * 32 * 1024  # a multiple of every block, large enough that nothing short repeats

# By our names: llama.cpp's name, ggml's number of the type, general.file_type, weights of a block, its bytes.
TYPES = {"f32": ("F32", 0, 0, 1, 4), "f16": ("F16", 1, 1, 1, 2), "bf16": ("BF16", 30, 32, 1, 2),
         "q8": ("Q8_0", 8, 7, 32, 34), "q4": ("Q4_0", 2, 2, 32, 18)}
UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9


def type_bytes(weights_type, weights):
    _, _, _, block, size = TYPES[weights_type]
    return weights // block * size


def string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def value(item):
    """A metadata value with its type before it."""
    if isinstance(item, bool):
        return struct.pack("<I?", BOOL, item)
    if isinstance(item, int):
        return struct.pack("<II", UINT32, item)
    if isinstance(item, float):
        return struct.pack("<If", FLOAT32, item)
    if isinstance(item, str):
        return struct.pack("<I", STRING) + string(item)
    return struct.pack("<IIQ", ARRAY, STRING, len(item)) + b"".join(map(string, item))


def pattern(weights_type):
    """Small random weights; a quantised block is an f16 scale and random codes."""
    source = random.Random(1)
    _, _, _, block, size = TYPES[weights_type]
    count = PATTERN_WEIGHTS // block
    if weights_type in ("q8", "q4"):
        scale = struct.pack("<e", 2e-4 if weights_type == "q8" else 4e-3)
        return b"".join(scale + source.randbytes(size - 2) for _ in range(count))
    if weights_type == "bf16":  # the upper half of each f32
        wide = pattern("f32")
        halves = bytearray(len(wide) // 2)
        halves[0::2], halves[1::2] = wide[2::4], wide[3::4]
        return bytes(halves)
    values = [source.uniform(-0.03, 0.03) for _ in range(64 * 1024)] * (count // (64 * 1024))
    return struct.pack(f"<{count}{'f' if weights_type == 'f32' else 'e'}", *values)


def write(path, metadata, tensors, weights_type):
    """`tensors` are (name, dimensions); the first dimension is the one along which weights lie side by side. Names
    that end in `!` are f32 whatever the type: biases and norms, as converters leave them."""
    named = [(name.rstrip("!"), shape, "f32" if name.endswith("!") else weights_type) for name, shape in tensors]
    head, offset, sizes = [], 0, []
    for name, shape, kind in named:
        weights = 1
        for dimension in shape:
            weights *= dimension
        size = type_bytes(kind, weights)
        head.append(string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, TYPES[kind][1], offset))
        sizes.append(size)
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    metadata = {**metadata, "general.alignment": ALIGNMENT, "general.file_type": TYPES[weights_type][2]}
    patterns = {kind: pattern(kind) for kind in {kind for _, _, kind in named}}
    with open(path, "wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(named), len(metadata)))
        for key, item in metadata.items():
            file.write(string(key) + value(item))
        file.write(b"".join(head))
        file.write(bytes(-file.tell() % ALIGNMENT))
        for size, (_, _, kind) in zip(sizes, named):
            write_repeated(file, patterns[kind], size)
            file.write(bytes(-size % ALIGNMENT))


def write_repeated(file, block, size):
    for _ in range(size // len(block)):
        file.write(block)
    file.write(block[:size % len(block)])


def tokenizer(vocabulary):
    """The least that llama.cpp loads: byte tokens and made-up ones, no merges."""
    tokens = [f"t{i}" for i in range(vocabulary)]
    # GPT-2 writes bytes as printable characters; the newline, which llama.cpp looks up, is this one.
    tokens[10] = "\u010a"
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.add_bos_token": False}


def write_gpt2(path, weights_type, *, width, heads, mlp, layers, vocabulary, context):
    """GPT-2's and GPT-3's block, with the head tied to the embedding."""
    metadata = {"general.architecture": "gpt2", "general.name": f"random {layers}x{width}", "gpt2.context_length": context,
                "gpt2.embedding_length": width, "gpt2.feed_forward_length": mlp, "gpt2.block_count": layers,
                "gpt2.attention.head_count": heads, "gpt2.attention.layer_norm_epsilon": 1e-5, **tokenizer(vocabulary)}
    tensors = [("token_embd.weight", (width, vocabulary)), ("position_embd.weight!", (width, context)),
               ("output_norm.weight!", (width,)), ("output_norm.bias!", (width,))]
    for layer in range(layers):
        def add(name, inputs, outputs):
            tensors.append((f"blk.{layer}.{name}.weight", (inputs, outputs)))
            tensors.append((f"blk.{layer}.{name}.bias!", (outputs,)))

        for norm in ("attn_norm", "ffn_norm"):
            tensors.extend([(f"blk.{layer}.{norm}.weight!", (width,)), (f"blk.{layer}.{norm}.bias!", (width,))])
        add("attn_qkv", width, 3 * width)
        add("attn_output", width, width)
        add("ffn_up", width, mlp)
        add("ffn_down", mlp, width)
    write(path, metadata, tensors, weights_type)


def write_llama(path, weights_type, *, width, heads, kv_heads, mlp, layers, vocabulary, context, tied, rope_base=10000.0):
    """`mlp` is the width of the gated MLP. An embedding that is only looked up has the matrices' type, too: a row of
    it costs nothing."""
    head = width // heads
    metadata = {"general.architecture": "llama", "general.name": f"random {layers}x{width}", "llama.context_length": context,
                "llama.embedding_length": width, "llama.feed_forward_length": mlp, "llama.block_count": layers,
                "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv_heads, "llama.rope.dimension_count": head,
                "llama.rope.freq_base": rope_base, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.vocab_size": vocabulary,
                **tokenizer(vocabulary)}
    tensors = [("token_embd.weight", (width, vocabulary)), ("output_norm.weight!", (width,))]
    if not tied:
        tensors.append(("output.weight", (width, vocabulary)))
    for layer in range(layers):
        block = f"blk.{layer}."
        tensors += [(block + "attn_norm.weight!", (width,)), (block + "ffn_norm.weight!", (width,)),
                    (block + "attn_q.weight", (width, width)), (block + "attn_k.weight", (width, kv_heads * head)),
                    (block + "attn_v.weight", (width, kv_heads * head)), (block + "attn_output.weight", (width, width)),
                    (block + "ffn_gate.weight", (width, mlp)), (block + "ffn_up.weight", (width, mlp)),
                    (block + "ffn_down.weight", (mlp, width))]
    write(path, metadata, tensors, weights_type)
