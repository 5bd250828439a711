#!/usr/bin/env python3
"""What types of weights, of activations and of keys and values cost a real model: its perplexity on some text, against
that of its own weights in f32 with reference arithmetic, and how far its weights are off. Beside it what rounding the same
matrices to llama.cpp's Q8_0 and Q4_0 costs, by the `gguf` package of llama.cpp's authors. See docs/quantization.md."""

import datetime
import json
import math
import pathlib
import re
import shutil
import statistics
import struct
import sys

from rival_engines import choices, markdown_table, need_room, remove
from support import ROOT, BenchError, cpu_model, main, positive, run_arguments, table

TYPES = ("f32", "f16", "bf16", "q8", "q4")
RIVALS = ("Q8_0", "Q4_0")
BITS = {"f32": 32, "f16": 16, "bf16": 16, "q8": 8.5, "q4": 4.5, "Q8_0": 8.5, "Q4_0": 4.5}
# --activations and --kv; the first is the reference arithmetic, in which weights alone are compared.
SETTINGS = (("f32", "f32"), ("bf16", "f32"), ("int8", "f32"), ("auto", "f16"), ("auto", "q8"))
GOAL = 0.001  # q8's largest change of the perplexity
PLAIN_TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "LICENSE"]
GATHERED = re.compile(r"(embed_tokens|wte|embed_in|word_embeddings)\.weight$")
POSITIONS = re.compile(r"(wpe|embed_positions)\.weight$|position_embd")


def parse():
    parser = run_arguments(__doc__, work=ROOT / "build/quantization", time_limit=4 * 3600)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "build/models/smollm2-135m-instruct.gguf",
                        help="GGUF file or Hugging Face folder; the default is what scripts/get_model.sh smollm2 fetches")
    parser.add_argument("--text", type=pathlib.Path, action="append", metavar="FILE",
                        help="what to score (repeatable; default: this project's README, docs and licence)")
    parser.add_argument("--tokens", type=positive, default=1024, help="of a window; the texts are joined and cut into whole ones")
    parser.add_argument("--windows", type=positive, metavar="N", help="score no more than N windows, all over the text (default: all)")
    parser.add_argument("--weights", default=",".join(TYPES), help="types to measure, as a list")
    parser.add_argument("--without-llama-cpp", action="store_true", help="leave Q8_0 and Q4_0 out")
    parser.add_argument("--python", type=pathlib.Path, help="a Python with numpy and gguf (default: a virtual environment in build/rivals, made "
                                                            "if it is not there)")
    parser.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write a Markdown table to FILE, too")
    flags = parser.parse_args()
    try:
        flags.weights = choices(TYPES)(flags.weights)
    except BenchError as error:
        parser.error(str(error))
    if not flags.model.exists():
        parser.error(f"{flags.model} is not there; scripts/get_model.sh smollm2 fetches a model, --model names another")
    return flags


def helper_python(bench):
    """A Python with numpy and gguf."""
    python = bench.flags.python
    home = ROOT / "build/rivals/gguf-venv"
    if python is None:
        python = home / "bin/python"
        if not (python.exists() and works(bench, python)):
            bench.say("installing numpy and gguf")
            bench.run([sys.executable, "-m", "venv", home])
            bench.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "numpy", "gguf"])
    if not works(bench, python):
        raise BenchError(f"{python} cannot import numpy and gguf", 4)
    return python


def works(bench, python):
    return bench.run([python, "-c", "import numpy, gguf; print(1)"], check=False)[0].strip() == "1"


class Windows:
    """The text as files of token ids, each with the tokens that the tokenizer puts in front of any text."""

    def __init__(self, bench):
        flags = bench.flags
        joined = bench.reports / "text"
        joined.write_text("\n".join(path.read_text() for path in flags.text or PLAIN_TEXTS))

        def tokens(*more):
            return json.loads(bench.run([bench.binary, "tokenize", flags.model, "--file", joined, "--json", *more])[0])["ids"]

        bare, ids = tokens("--no-bos"), tokens()
        extra = len(ids) - len(bare)
        if ids[extra:] != bare:
            raise BenchError("the tokenizer adds tokens elsewhere than in front", 3)
        front, step = ids[:extra], flags.tokens - extra
        self.first = max(1, extra)  # the first token that is predicted and counts
        if step < 2 or len(bare) < step:
            raise BenchError(f"the text has {len(bare)} tokens, which is no window of {flags.tokens}; choose fewer --tokens", 2)
        self.files = []
        whole = len(bare) // step
        count = min(whole, flags.windows or whole)
        for i in (n * whole // count for n in range(count)):
            self.files.append(bench.reports / f"ids-{i}")
            self.files[-1].write_text(" ".join(map(str, front + bare[i * step:(i + 1) * step])))
        self.tokens = len(self.files) * (flags.tokens - self.first)  # predicted ones


class Scores:
    """Log-probabilities of the tokens, window by window."""

    def __init__(self, bench, store, windows, activations, kv):
        self.windows = []
        threads = ["--threads", bench.flags.threads] if bench.flags.threads else []
        for file in windows.files:
            stdout, _ = bench.run([bench.binary, "score", "--store", store, "--ids", file, "--activations", activations, "--kv", kv,
                                   "--json", "--quiet", *threads])
            self.windows.append(json.loads(stdout)["logprobs"][windows.first:])
        self.means = [statistics.fmean(window) for window in self.windows]
        self.perplexity = math.exp(-statistics.fmean(self.means))

    def against(self, other):
        """The relative change of the perplexity and its standard error, by how much windows differ in it."""
        changes = [theirs - own for own, theirs in zip(self.means, other.means)]
        spread = statistics.stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None
        tokens = [(a - b)**2 for own, theirs in zip(self.windows, other.windows) for a, b in zip(own, theirs)]
        return {"change": math.expm1(statistics.fmean(changes)), "standard_error": spread, "token_change": math.sqrt(statistics.fmean(tokens))}


class Measurement:
    def __init__(self, bench):
        self.bench, self.flags = bench, bench.flags
        self.python = helper_python(bench)
        self.windows = Windows(bench)
        self.baseline_store = self.store("f32", bench.flags.model)
        bench.say(f"{len(self.windows.files)} windows of {self.flags.tokens} tokens")
        self.reference = Scores(bench, self.baseline_store, self.windows, *SETTINGS[0])
        self.rows, self.scores = [], {}  # scores with reference arithmetic, by type

    def store(self, name, model, weights="f32"):
        path = self.bench.work / f"{model.stem if name in RIVALS else self.flags.model.stem}-{weights}"
        if not self.flags.keep:
            self.bench.undo.callback(remove, path)
        if not (path / "manifest.json").exists():
            self.bench.run([self.bench.binary, "import", model, path, "--weights", weights, "--quiet"])
        return path

    def measure(self):
        for weights in self.flags.weights:
            store = self.store(weights, self.flags.model, weights)
            settings = [(activations, kv) for activations, kv in SETTINGS if activations != "int8" or weights in ("q8", "q4")]
            self.add(weights, store, settings)
            if not self.flags.keep and store != self.baseline_store:
                remove(store)
        for weights in () if self.flags.without_llama_cpp else RIVALS:
            model = self.bench.work / f"{self.flags.model.stem}-{weights}{self.flags.model.suffix}"
            self.bench.undo.callback(remove, model)
            self.bench.run([self.python, __file__, "requantise", weights, self.flags.model, model])
            store = self.store(weights, model)
            self.add(weights, store, SETTINGS[:1])
            remove(model)
            if not self.flags.keep:
                remove(store)

    def add(self, weights, store, settings):
        error = json.loads(self.bench.run([self.python, __file__, "weights-error", self.baseline_store, store])[0])
        for activations, kv in settings:
            known = store == self.baseline_store and (activations, kv) == SETTINGS[0]
            scores = self.reference if known else Scores(self.bench, store, self.windows, activations, kv)
            if (activations, kv) == SETTINGS[0]:
                self.scores[weights] = scores
            row = {"weights": weights, "bits": BITS[weights], "activations": activations, "kv": kv, "weights_error": error,
                   "perplexity": scores.perplexity, **scores.against(self.reference), "window_means": scores.means}
            self.rows.append(row)
            self.bench.say(f"{weights}, activations {activations}, kv {kv}: perplexity {scores.perplexity:.5g}, {change(row)}, "
                           f"a token {row['token_change']:.4f}")

    def find(self, weights, setting=SETTINGS[0]):
        return next((row for row in self.rows if row["weights"] == weights and (row["activations"], row["kv"]) == setting), None)


def change(row):
    if row is None:
        return "-"
    text = f"{100 * row['change']:+.3f}"
    return text + " %" if row["standard_error"] is None else f"{text} ± {100 * row['standard_error']:.3f} %"


def verdicts(measurement):
    """Whether the goals are met: q8 moves the perplexity by 0.1 % at most, q4 raises it no more than Q4_0 does."""
    found = []
    for setting in SETTINGS:
        q8 = measurement.find("q8", setting)
        if q8:
            met = "met" if abs(q8["change"]) <= GOAL else "NOT met"
            found.append(f"q8 with activations {setting[0]}, keys and values {setting[1]}, moves it by {change(q8)}: the goal of "
                         f"{100 * GOAL} % is {met}.")
    if "q4" in measurement.scores and "Q4_0" in measurement.scores:
        row = measurement.scores["q4"].against(measurement.scores["Q4_0"])
        met = "met" if row["change"] <= 0 else "NOT met"
        if row["standard_error"] is None or abs(row["change"]) < 2 * row["standard_error"]:
            met += ", and within two standard errors"
        found.append(f"q4's perplexity is {change(row)} of Q4_0's: the goal, no more than Q4_0, is {met}.")
    return found


def measure(bench):
    size = sum(path.stat().st_size for path in ([bench.flags.model] if bench.flags.model.is_file() else bench.flags.model.glob("*.*")))
    need_room(bench, 20 * size, 10 * size, "stores of this model")  # from 4 bits to 32, two of them and a file
    measurement = Measurement(bench)
    measurement.measure()
    windows = measurement.windows
    said = (f"{cpu_model()}, {datetime.date.today()}: {bench.flags.model.name}, {windows.tokens} tokens in {len(windows.files)} windows of "
            f"{bench.flags.tokens}, perplexity {measurement.reference.perplexity:.4f} in f32 with reference arithmetic. Changes against that, ± "
            "their standard errors by window; a token's is the root mean square change of its ln P, with reference arithmetic.")
    headings = ["weights", "bits", "error of weights", "a token's", *(f"{activations}, kv {kv}" for activations, kv in SETTINGS)]
    names = list(dict.fromkeys(row["weights"] for row in measurement.rows))
    rows = [[name, f"{BITS[name]:g}", f"{100 * measurement.find(name)['weights_error']:.3g} %", f"{measurement.find(name)['token_change']:.4f}",
             *(change(measurement.find(name, setting)) for setting in SETTINGS)] for name in names]
    said_of_goals = verdicts(measurement)
    print(said)
    table(headings, rows)
    print("\n".join(said_of_goals))
    if bench.flags.markdown:
        bench.flags.markdown.write_text("\n\n".join([said, markdown_table(headings, rows).rstrip(), *said_of_goals]) + "\n")
    return {"model": bench.flags.model.name, "tokens": windows.tokens, "windows": len(windows.files), "window": bench.flags.tokens,
            "reference_perplexity": measurement.reference.perplexity, "rows": measurement.rows, "goals": said_of_goals}


# From here on what needs numpy and gguf: the helper Python runs this file with a command.


def requantise(weights, source, destination):
    """A copy of a model whose matrices are rounded to Q8_0 or Q4_0: those that a q8 or q4 store quantises, the projections
    and the head, or an embedding that is the head, too. (llama.cpp's own tool gives the last more bits.) Groups of 32 along
    the inputs, as both have them."""
    if source.is_file():
        requantise_gguf(weights, source, destination)
    else:
        requantise_folder(weights, source, destination)


def requantise_gguf(weights, source, destination):
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType[weights]
    reader = gguf.GGUFReader(source)
    alignment = int(reader.alignment)
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    head, blocks, offset = [], [], 0
    for tensor in reader.tensors:
        shape = [int(n) for n in tensor.shape]  # the first dimension is the inputs
        matrix = len(shape) == 2 and shape[0] % 32 == 0 and not POSITIONS.search(tensor.name) and (tied or tensor.name != "token_embd.weight")
        data, data_type = tensor.data, tensor.tensor_type
        if matrix:
            data, data_type = gguf.quants.quantize(gguf.quants.dequantize(data, data_type).reshape(shape[::-1]), kind), kind
        name, block = tensor.name.encode(), np.ascontiguousarray(data).tobytes()
        head.append(struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, int(data_type), offset))
        blocks.append(block)
        offset += -(-len(block) // alignment) * alignment
    # Metadata, tokenizer included, stay as they are: all between the counts and the first tensor's entry.
    metadata_end = min(tensor.field.offset for tensor in reader.tensors)
    with open(destination, "wb") as file:
        file.write(source.read_bytes()[:metadata_end])
        file.write(b"".join(head))
        for block in blocks:
            file.write(bytes(-file.tell() % alignment))
            file.write(block)
        file.write(bytes(-file.tell() % alignment))


def requantise_folder(weights, source, destination):
    import gguf
    import numpy as np

    if json.loads((source / "config.json").read_text())["model_type"] == "gpt2":
        sys.exit("GPT-2's matrices are stored with inputs as rows; convert the model to GGUF")
    kind = gguf.GGMLQuantizationType[weights]
    shutil.copytree(source, destination, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    files = sorted(source.glob("*.safetensors"))
    if not files:
        sys.exit(f"{source} has no safetensors")
    heads = {}
    for path in files:
        with open(path, "rb") as file:
            heads[path] = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            heads[path].pop("__metadata__", None)
    tied = not any(name in ("lm_head.weight", "embed_out.weight") for head in heads.values() for name in head)
    for path, head in heads.items():
        raw = path.read_bytes()
        begin, blocks, offset = 8 + struct.unpack("<Q", raw[:8])[0], [], 0
        for name, entry in head.items():
            first, last = entry["data_offsets"]
            block = raw[begin + first:begin + last]
            matrix = len(entry["shape"]) == 2 and entry["shape"][1] % 32 == 0 and entry["dtype"] in ("F32", "F16", "BF16")
            if matrix and not POSITIONS.search(name) and (tied or not GATHERED.search(name)):
                values = np.frombuffer(block, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry["dtype"]])
                values = (values.astype("<u4") << 16).view("<f4") if entry["dtype"] == "BF16" else values.astype("<f4")
                rounded = gguf.quants.dequantize(gguf.quants.quantize(values.reshape(entry["shape"]), kind), kind)
                block, entry["dtype"] = rounded.astype("<f4").tobytes(), "F32"
            entry["data_offsets"] = [offset, offset + len(block)]
            offset += len(block)
            blocks.append(block)
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        (destination / path.name).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def matrices(store):
    """Each matrix that a store of f32 has in panels, by file, part and place."""
    manifest = json.loads((store / "manifest.json").read_text())
    for slab in manifest["slabs"]:
        for part in slab["parts"]:
            for place, tensor in enumerate(part["tensors"]):
                if tensor["layout"] != "rows.v1":
                    yield (slab["file"], part["part"], place), store / slab["file"], part["offset"] + tensor["offset"], tensor


def values_of(file, offset, tensor):
    """A matrix as numbers (docs/store-format.md)."""
    import numpy as np

    rows, cols = tensor["shape"]
    raw = np.fromfile(file, np.uint8, tensor["bytes"], offset=offset)
    panels, groups = -(-rows // 16), -(-cols // 32)
    if tensor["layout"] == "p16.v1":
        values = raw.view({"f32": "<f4", "f16": "<f2", "bf16": "<u2"}[tensor["dtype"]])
        values = (values.astype("<u4") << 16).view("<f4") if tensor["dtype"] == "bf16" else values.astype("<f4")
        return values.reshape(panels, cols, 16).transpose(0, 2, 1).reshape(panels * 16, cols)[:rows]
    raw = raw.reshape(panels, groups, -1)
    scales = np.ascontiguousarray(raw[..., :32]).view("<f2").astype("<f4")  # panel, group, row
    words = raw[..., 32:].reshape(panels, groups, -1, 16, 4)                # panel, group, word, row, byte
    if tensor["dtype"] == "q8":
        quants = words.view(np.int8).transpose(0, 3, 1, 2, 4)
    else:
        quants = np.stack([words & 15, words >> 4], axis=-2).astype(np.int8).transpose(0, 3, 1, 2, 4, 5) - 8
    values = quants.reshape(panels, 16, groups, 32).astype("<f4") * scales.transpose(0, 2, 1)[..., None]
    return values.reshape(panels * 16, groups * 32)[:rows, :cols]


def weights_error(exact, rounded):
    """The size of what all matrices of a store are off, relative to theirs."""
    import numpy as np

    others = {key: rest for key, *rest in matrices(rounded)}
    error = size = 0.0
    for key, *rest in matrices(exact):
        values = values_of(*rest)
        error += float(np.sum(np.square(values - values_of(*others[key])), dtype=np.float64))
        size += float(np.sum(np.square(values), dtype=np.float64))
    print(json.dumps(math.sqrt(error / size)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["requantise"]:
        sys.exit(requantise(sys.argv[2], pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4])))
    if sys.argv[1:2] == ["weights-error"]:
        sys.exit(weights_error(pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])))
    sys.exit(main(parse(), measure))
