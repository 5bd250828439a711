"""Bytes and operations of the CUDA kernels' launches, and the least time they take on a card by its data sheet."""

import dataclasses

# By data sheet: memory in GB/s; float32 outside tensor cores, and f16/bf16 on them with float32 sums and dense matrices, in
# TFLOP/s. GeForce cards add up in float32 at half the rate that is usually named; tensor cores of capability 7.5 have no bf16.
CARDS = [
    {"name": "RTX 2060 12GB", "memory": 336, "f32": 7.2, "f16": 28.7, "bf16": None},
    {"name": "RTX 3060 12GB", "memory": 360, "f32": 12.7, "f16": 25.5, "bf16": 25.5},
    {"name": "RTX 3090", "memory": 936, "f32": 35.6, "f16": 71, "bf16": 71},
    {"name": "RTX 4090", "memory": 1008, "f32": 82.6, "f16": 165, "bf16": 165},
    {"name": "RTX 5090", "memory": 1792, "f32": 104.8, "f16": 209, "bf16": 209},
]

MODELS = [
    {"title": "GPT-J's widths (4,096; 16 heads of 256)", "hidden": 4096, "heads": 16, "dims": 256, "rotary": 64, "rows": 2048, "context": 2048},
    {"title": "GPT-3's widths (12,288; 96 heads of 128)", "hidden": 12288, "heads": 96, "dims": 128, "rotary": 0, "rows": 2048, "context": 2048},
]

WEIGHT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8": 1 + 2 / 32, "q4": 0.5 + 2 / 32}
INPUT_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 40 / 32}  # int8: 32 quants, a scale and their sum
KV_BYTES = {"f32": 4, "f16": 2, "q8": 1 + 2 / 32}


@dataclasses.dataclass
class Launch:
    """`bytes` of device memory, each thing once; `operations` on the units that `unit` names."""
    name: str
    bytes: float
    operations: float = 0
    unit: str = "f32"  # f32, int8; of tensor cores f16, bf16
    parts: tuple = ()  # of a sum, whose time is theirs

    def rate(self, card):
        """Operations a second; None where the card has no such unit."""
        # Four products of a dp4a, which has half the rate of a float32 multiply-add (on capability 7.5: all of it).
        rate = 2 * card["f32"] if self.unit == "int8" else card[self.unit]
        return rate and 1e12 * rate

    def memory_bound(self, card):
        return bool(self.parts) or self.bytes / (1e9 * card["memory"]) >= self.operations / self.rate(card)

    def seconds(self, card):
        """None where the card cannot do it so."""
        if self.parts:
            times = [part.seconds(card) for part in self.parts]
            return None if None in times else sum(times)
        if self.rate(card) is None:
            return None
        return max(self.bytes / (1e9 * card["memory"]), self.operations / self.rate(card))


def few_rows(weights, inputs, rows, n_in, n_out):
    size = f"{rows} x {n_in:,} > {n_out:,}"
    return Launch(f"few_rows {weights} · {inputs}, {size}", n_in * n_out * WEIGHT_BYTES[weights] + rows * (n_in * INPUT_BYTES[inputs] + 4 * n_out),
                  2 * rows * n_in * n_out, "int8" if inputs == "int8" else "f32")


def unpack(weights, to, n_in, n_out):
    return Launch(f"unpack {weights} to {to}, {n_in:,} > {n_out:,}", n_in * n_out * (WEIGHT_BYTES[weights] + WEIGHT_BYTES[to]))


def cublas(kind, rows, n_in, n_out):
    width = WEIGHT_BYTES[kind]
    return Launch(f"cuBLAS {kind}, {rows:,} x {n_in:,} > {n_out:,}", width * n_in * (n_out + rows) + 4 * rows * n_out, 2 * rows * n_in * n_out,
                  kind)


def attention(name, kv, m, rows, positions):
    """`rows` at the end of so many positions; of several rows on tensor cores, unless keys and values are float32."""
    seen = sum(range(positions - rows + 1, positions + 1))
    return Launch(f"{name} {kv}, {rows:,} of {positions:,}", 2 * positions * m["hidden"] * KV_BYTES[kv] + 8 * rows * m["hidden"], 4 * seen * m["hidden"],
                  "f16" if rows > 1 and kv != "f32" else "f32")


def merge(m, positions):
    """What a row's splits of 256 positions found, by head: values, their maximum and sum."""
    splits = (positions + 255) // 256
    parts = splits * m["heads"] * (m["dims"] + 2)
    return Launch(f"attention_merge, 1 of {positions:,}", 4 * (parts + m["hidden"]), 4 * parts)


def elementwise(name, rows, cols, each, operations):
    return Launch(f"{name}, {rows:,} x {cols:,}", rows * cols * each, rows * cols * operations)


def small_ops(m, rows, inputs):
    """A layer's ops that touch each element a few times: norms, activation, packing, keys and values with rotary embedding."""
    h = m["hidden"]
    if inputs == "f32":
        ops = [elementwise("norm", rows, h, 8, 8), elementwise("activation", rows, 4 * h, 8, 20)]
    else:
        packed = 4 + INPUT_BYTES[inputs]
        ops = [elementwise(f"norm_and_pack {inputs}", rows, h, packed, 10), elementwise(f"activation_and_pack {inputs}", rows, 4 * h, packed, 22),
               elementwise(f"pack_input {inputs}", rows, h, packed, 2)]
    return ops + [append(m, rows, "f16")]


def append(m, rows, kv, rotates=True):
    """New keys and values into their pages; with rotary embedding queries, in place, and keys on their way turn."""
    turned = rows * m["heads"] * m["rotary"] if rotates else 0
    plain = elementwise(f"{'rotate_and_append' if turned else 'append_kv'} {kv}", rows, m["hidden"], 2 * (4 + KV_BYTES[kv]), 0)
    return Launch(plain.name, plain.bytes + 8 * turned, 6 * turned)


def layer(m, weights, inputs, rows):
    """All matrices of a block (q, k, v, o, up, down), its attention, and the small ops once each."""
    h = m["hidden"]
    sizes = [(h, h)] * 4 + [(h, 4 * h), (4 * h, h)]
    if rows == 1:
        together = [(h, 3 * h), *sizes[3:]]
        parts = [few_rows(weights, inputs, 1, *size) for size in together] + [attention("attention_decode", "f16", m, 1, m["context"])]
    else:
        kind = inputs if inputs != "int8" else "f16"
        parts = [part for size in sizes for part in (unpack(weights, kind, *size), cublas(kind, rows, *size))]
        parts.append(attention("attention_prefill", "f16", m, rows, rows))
    parts += small_ops(m, rows, inputs)
    what = "a token at " + f"{m['context']:,}" if rows == 1 else f"{rows:,} tokens"
    return Launch(f"**a layer**, {weights} · {inputs}, {what}", sum(p.bytes for p in parts), sum(p.operations for p in parts), parts=tuple(parts))


def launches(m):
    h, rows, context = m["hidden"], m["rows"], m["context"]
    pairs = [("f32", "f32"), ("bf16", "bf16"), ("q8", "int8"), ("q4", "int8")]
    all_pairs = [(w, x) for w in WEIGHT_BYTES for x in (("f32", "f16", "bf16", "int8") if w in ("q8", "q4") else sorted({"f32", w}))]
    found = [few_rows(*pair, count, h, 4 * h) for count in (1, 2, 4, 8) for pair in all_pairs]
    found += [attention("attention_decode", kv, m, 1, context) for kv in KV_BYTES] + [merge(m, context)]
    found += [unpack(w, x, h, 4 * h) for w in WEIGHT_BYTES for x in (["f32", "f16"] if w in ("q8", "q4") else sorted({"f32", w}))]
    found += [cublas(kind, rows, h, 4 * h) for kind in ("f32", "f16", "bf16")]
    found += [attention("attention_prefill", kv, m, rows, rows) for kv in KV_BYTES]
    found += [elementwise("norm", rows, h, 8, 8), elementwise("activation", rows, 4 * h, 8, 20)]
    for inputs, packed in INPUT_BYTES.items():
        found += [elementwise(f"norm_and_pack {inputs}", rows, h, 4 + packed, 10),
                  elementwise(f"activation_and_pack {inputs}", rows, 4 * h, 4 + packed, 22), elementwise(f"pack_input {inputs}", rows, h, 4 + packed, 2)]
    found += [elementwise("unpack_input", rows, h, INPUT_BYTES["int8"] + 2, 1), elementwise("bias", rows, 4 * h, 8, 1),
              elementwise("gather_rows f16", rows, h, 2 + 4, 0)]
    found += [append(m, rows, kv, rotates) for rotates in ([False, True] if m["rotary"] else [False]) for kv in KV_BYTES]
    if m["rotary"]:
        found.append(elementwise("rotary", rows, m["heads"] * m["rotary"], 8, 3))
    found += [Launch("fetch, 32 spans of the context", 32 * (40 + 2 * 8 * context / 64)), Launch("read_memory, 1 GB", 1e9, 2.5e8)]
    found += [layer(m, *pair, 1) for pair in pairs[1:]] + [layer(m, *pair, rows) for pair in pairs[1:3]]
    return found
