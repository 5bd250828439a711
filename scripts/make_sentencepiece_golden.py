#!/usr/bin/env python3
"""Writes tests/data/tokenizers/spm_*: small SentencePiece models and what its library does with them.

Each folder holds a tokenizer.model, trained on the corpus of make_tokenizer_golden.py, with
  cases.json: {"library": VERSION, "cases": [{"ids", "decoded"}, ...]}
One case per text of texts.json, without BOS; "decoded" is left out where it equals the text, and null
where <unk> is among the ids, for which the library prints something. Where the model has user-defined
pieces, texts that name a control piece are null: the library takes them for plain text, this program
for what they name.
The same version of the library gives the same bytes.

    pip install sentencepiece==0.2.3 protobuf==7.36.2
    scripts/make_sentencepiece_golden.py
"""

import io

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from make_tokenizer_golden import CORPUS, OUTPUT, TEXTS, write_json_lines


def train(**options):
    file = io.BytesIO()
    settings = {"model_type": "bpe", "vocab_size": 420, "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False, "byte_fallback": True, "character_coverage": 0.98,
                "num_threads": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=file, **(settings | options))
    return file.getvalue()


def spm_llama():
    """The shape of Llama 2's: byte fallback, a dummy prefix, all spaces kept."""
    return train()


def spm_plain():
    """Neither bytes nor prefix: unknown characters are <unk>, several in a row one."""
    return train(byte_fallback=False, add_dummy_prefix=False, vocab_size=180)


def spm_user_defined():
    """Pieces that are found before anything merges; some begin alike, one holds spaces."""
    return train(user_defined_symbols=["horse", "horses knew", "\n", "<|end|>", "▁▁", "🐎"])


def spm_collapsed():
    """The library's own default for white space."""
    return train(remove_extra_whitespaces=True)


def spm_odd():
    """Characters that are parts of pieces but no pieces themselves, and scores that tie."""
    model = sentencepiece_model_pb2.ModelProto.FromString(train(byte_fallback=False, vocab_size=180))
    kept = [piece for piece in model.pieces if piece.piece not in ("h", "s", "▁", "é", "東")]
    for number, piece in enumerate(kept):
        if piece.type == piece.NORMAL:
            piece.score = float(-(number // 9))
    del model.pieces[:]
    model.pieces.extend(kept)
    return model.SerializeToString()


def cases_of(processor, skipped):
    cases = []
    for text in TEXTS:
        if any(name in text for name in skipped):
            cases.append(None)
            continue
        ids = processor.encode(text)
        case = {"ids": ids}
        decoded = processor.decode(ids)
        if processor.unk_id() in ids:
            case["decoded"] = None
        elif decoded != text:
            case["decoded"] = decoded
        cases.append(case)
    return cases


def main():
    for build in [spm_llama, spm_plain, spm_user_defined, spm_collapsed, spm_odd]:
        model = build()
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        folder = OUTPUT / build.__name__
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(model)
        skipped = ["<s>", "</s>", "<unk>"] if build is spm_user_defined else []
        write_json_lines(folder / "cases.json", f'"library":"sentencepiece {sentencepiece.__version__}",',
                         {"cases": cases_of(processor, skipped)})
        print(f"{build.__name__}: {processor.get_piece_size()} pieces")


if __name__ == "__main__":
    main()
