#!/usr/bin/env python3
"""Writes tests/data/tokenizers/: small tokenizers and what the `tokenizers` library does with them.

texts.json holds the texts, and each folder a tokenizer.json, trained on the corpus below, with
  cases.json: {"library": VERSION,
               "cases": [{"ids", "ids_without_special", "decoded", "decoded_with_special"}, ...],
               "decode": [{"ids", "text"}, ...]}
One case per text; to keep the files small, what equals its neighbour is left out:
ids_without_special equals ids, decoded equals the text, decoded_with_special equals decoded. "decode"
has random ids, broken UTF-8 and unknown ids included.
The same version of the library gives the same bytes.

    pip install tokenizers==0.23.3
    scripts/make_tokenizer_golden.py
"""

import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "tokenizers"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

CORPUS = [
    "The coach left the inn at dawn, and the horses knew the road better than the driver did.",
    "At each stage four fresh horses waited; nobody carried the whole load the whole way.",
    "We'll change horses twice, they'd said, and it's true that they've never been late.",
    "In 1843 the mail took 16 hours and 25 minutes; in 1850 it took 9.",
    "A driver who can't hold six horses isn't a driver, he's a passenger with reins!",
    "Straße, café, naïve, Ærø, Łódź; Ελλάδα и Россия; 東京の馬車 and 駅馬車.",
    "for (int i = 0; i < 10; ++i) {\n    total += stage[i];\n}\n\n",
    "  two spaces,   three spaces\tand a tab\r\nand a line",
]

TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", " \n \n", "\t", "\r\n\r\n", "a", " a", "a ", "  a  ", "\u00a0", "\u3000x",
    "The driver took the horses to the stage at dawn.",
    "nobody   knew\t\tthe road  \n  better \n\n\n  than   ", "trailing spaces   ", "   leading spaces",
    "I'll I'LL I'Ll it's IT'S we've WE'VE they'd THEY'D I'm I'M he're HE'RE can't CAN'T 'tis ''s 's",
    "it'\u017f IT'\u017fX '\u017f", "don\u2019t and don`t", "'", "''", "'x", "a'", "'\u212a",
    "0 1 12 123 1234 12345 1234567 3.14159 1,000,000 ½ ² ³4 Ⅷ ٣٤٥ १२३४ ①②", "abc123def 4x4", "2024-10-05T12:34:56Z",
    "Straße café cafe\u0301 naïve e\u0301\u0301 \u1e9b\u0323 \u212b Å A\u030a", "\u0301start q\u0307\u0323 \u0344",
    "한국어 \u1112\u1161\u11ab\u1100\u116e\u11a8 각", "東京の馬車、駅馬車。中文，标点！", "สวัสดี ชาวโลก नमस्ते दुनिया مرحبا بالعالم، كيف",
    "🐎 🐴🚃 👩🏽‍🚀 🏳️‍🌈 🇩🇪🇯🇵 #️⃣", "a🐎b", "\U0001f40e\U0001f40e\n\U0001f40e",
    "x\u180ey \u180e z", "x\u0085y \u0085 z\u0085", "a\u2028b\u2029c\u200bd\u2060e\ufefff", "\u1680\u2003\u205f\u202f w",
    "NUL\x00in\x00\x00 the middle \x00", "\x01\x02\x1b[0m\x7f\x1c\x1d\x1e\x1f x", "\x0b\x0c v f",
    "for (int i = 0; i < 10; ++i) {\n\ttotal += stage[i];  // sum\n}\r\n", "...!!! ?!\n\n ,,\r\n\r\nx --\n", "!\n", " !\n \n", "$€£ +=-*/ <>|^~ “q” ‘s’ — … ·",
    "<s> The</s>", "a<s>b", "<|end|>", " <|end|> ", "x <|end|>  y<|end|><|end|>", "<|end", "<|en<|end|>|>",
    "left   <lstrip>  right <lstrip>", "left   <rstrip>  \n right<rstrip>x", "a <both> b<both>  <both>c", "<lstrip>", "\u0085<both>\u3000x \u180e<both>\u180ex",
    "word xword words word. _word word_ wordé wörd word\u0301 (word) Ⓐword 9word word🐎", "horse carriage horse carriages xhorse carriage",
    "horse", "horse carriage", "caf\u00e9 token cafe\u0301 token", "the long token and the long", "<s><s>  <s>x", "a▁b ▁ ▁▁c", "▁", "a  b   c    d",
    "<0x41> <0x0A>", "<unk>", "\ue000 \U0010ffff \ufffd \ufffe", "ﬁ ﬆ ŉ ß ẞ İ ı K",
    "tab\there   and\u00a0there\u2009thin", "a\rb\r\rc\n\rd", "x \r y \n z  \r\n  ", "[x](y|z) (a,b)…。，、।۔،", "12 345 6789 a1b22c333d4444", "a" * 120, "ab" * 20 + " " * 30 + "z",
]

ADDED = [
    AddedToken("<|end|>", special=True, normalized=False),
    AddedToken("<lstrip>", lstrip=True, normalized=False, special=True),
    AddedToken("<rstrip>", rstrip=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("word", single_word=True, normalized=False),
    AddedToken("horse", normalized=False), AddedToken("horse carriage", normalized=False),
    AddedToken("caf\u00e9 token", normalized=True), AddedToken("the long", normalized=True),
    AddedToken("the long token", normalized=True),
]


def template(tokenizer, single, names):
    special = [(name, tokenizer.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, pair=single + " $B:1", special_tokens=special)


def byte_level(pre_tokenizer, merges=180, normalizer=None, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split_then_bytes(regex):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(regex), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=True, special=True)])
    return tokenizer


def gpt2_prefix_added():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))
    tokenizer.add_tokens(ADDED)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    tokenizer.post_processor = template(tokenizer, "<s> $A </s>", ["<s>", "</s>"])
    return tokenizer


def llama3():
    data = json.loads(byte_level(split_then_bytes(LLAMA3), ignore_merges=True).to_str())
    vocab = data["model"]["vocab"]
    for token in ["ĠnaÃ¯ve", "ĠROAD", "1234", "345"]:  # no merges lead to these, ignore_merges does
        vocab[token] = len(vocab)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens(["<s>", "<|end|>"])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False), template(tokenizer, "<s> $A", ["<s>"])])
    return tokenizer


def qwen2():
    tokenizer = byte_level(split_then_bytes(QWEN2), normalizer=normalizers.NFC())
    tokenizer.add_tokens(ADDED)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def bloom():
    return byte_level(split_then_bytes(BLOOM), merges=60)


def falcon():
    return byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]), merges=60)


def smollm():
    return byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)]), merges=60)


def splits():
    return byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("-", "merged_with_previous"),
        pre_tokenizers.Split("'", "merged_with_next"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split("a", "removed", invert=False),
        pre_tokenizers.Split("!", "contiguous", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)]), merges=60)


PIECES = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                            decoders.Strip(" ", 1, 0)])


def sentence_piece(normalizer, pre_tokenizer, decoder, fallback=True, fuse=True, missing_bytes=()):
    """Merges learned with a Metaspace split, in the vocabulary layout of Llama 2."""
    trainer_tokenizer = Tokenizer(models.BPE())
    trainer_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer_tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=320, limit_alphabet=70, show_progress=False))
    learned = json.loads(trainer_tokenizer.to_str())["model"]
    names = ["<unk>", "<s>", "</s>"]
    if fallback:
        names += [f"<0x{byte:02X}>" for byte in range(256) if byte not in missing_bytes]
    names += sorted(learned["vocab"], key=learned["vocab"].get)
    merges = [tuple(merge) for merge in learned["merges"]]
    # Runs of spaces, as Llama 2 has them.
    for left, right in [("▁", "▁"), ("▁▁", "▁▁")]:
        names.append(left + right)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges,
                                     unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    if decoder:
        tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:3]])
    tokenizer.post_processor = template(tokenizer, "<s> $A", ["<s>"])
    return tokenizer


def llama2():
    return sentence_piece(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, PIECES)


def llama2_added():
    tokenizer = sentence_piece(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, PIECES)
    tokenizer.add_tokens(ADDED)
    return tokenizer


def metaspace(scheme, split, **options):
    replacement = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return sentence_piece(None, replacement, decoders.Metaspace(prepend_scheme=scheme), **options)


def metaspace_first():
    tokenizer = sentence_piece(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), PIECES)
    tokenizer.add_tokens(ADDED)
    return tokenizer


def metaspace_always():
    return metaspace("always", True, fallback=False, fuse=False)


def metaspace_never():
    return metaspace("never", True, missing_bytes=(0xF0, 0xE6))


def no_decoder():
    """Unknown characters fused, no byte tokens; tokens joined by spaces; spaces split off as Gemma's."""
    return sentence_piece(normalizers.Replace(" ", "▁"), pre_tokenizers.Split("▁", "merged_with_previous"),
                          None, fallback=False)


def cases_of(tokenizer):
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        case = {"ids": ids}
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        with_special = tokenizer.decode(ids, skip_special_tokens=False)
        if plain != ids:
            case["ids_without_special"] = plain
        if decoded != text:
            case["decoded"] = decoded
        if with_special != decoded:
            case["decoded_with_special"] = with_special
        cases.append(case)
    return cases


def random_decodes(tokenizer):
    # Longer runs of byte-like tokens (the low ids) break UTF-8 in every way; ids beyond the end are
    # unknown.
    generator = random.Random(20240501)
    size = tokenizer.get_vocab_size() + 5
    decodes = []
    for i in range(60):
        top = 264 if i % 2 else size
        ids = [generator.randrange(top) for _ in range(generator.randrange(1, 14))]
        decodes.append({"ids": ids, "text": tokenizer.decode(ids, skip_special_tokens=True)})
    return decodes


def write_json_lines(path, head, lists):
    """An object with one array element a line, so that differences can be read."""
    parts = [f'"{name}":[\n' + ",\n".join(compact(item) for item in items) + "\n]"
             for name, items in lists.items()]
    path.write_text("{" + head + ",".join(parts) + "}\n", encoding="utf-8")


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def with_old_merges(data):
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]


def main():
    builders = [gpt2, gpt2_prefix_added, llama3, qwen2, bloom, falcon, smollm, splits, llama2, llama2_added,
                metaspace_first, metaspace_always, metaspace_never, no_decoder]
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_json_lines(OUTPUT / "texts.json", "", {"texts": TEXTS})
    for build in builders:
        tokenizer = build()
        folder = OUTPUT / build.__name__
        folder.mkdir(parents=True, exist_ok=True)
        data = json.loads(tokenizer.to_str())
        if build in (gpt2, llama2):  # files written before 2024 have merges as "A B"
            with_old_merges(data)
        tokenizer = Tokenizer.from_str(compact(data))
        (folder / "tokenizer.json").write_text(compact(data) + "\n", encoding="utf-8")
        write_json_lines(folder / "cases.json", f'"library":"tokenizers {tokenizers.__version__}",',
                         {"cases": cases_of(tokenizer), "decode": random_decodes(tokenizer)})
        print(f"{build.__name__}: {tokenizer.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
