#!/usr/bin/env python3
"""Copies the seeds of tests/fuzz/corpus out of the fixtures in tests/data.

Run scripts/make_pytorch_golden.py first. Needs a built binary, for the manifest:

    python3 scripts/make_fuzz_corpus.py build/release/bin/stagecoach
"""

import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

TESTS = pathlib.Path(__file__).resolve().parent.parent / "tests"
DATA = TESTS / "data"
CORPUS = TESTS / "fuzz/corpus"
LIMIT_BYTES = 15_000  # of one seed

COPIES = {
    "safetensors": ["pytorch/gptj-bf16/model.safetensors", "pytorch/gpt2/model.safetensors"],
    "zip": ["pytorch/two.bin"],
    "pytorch": ["pytorch/two.bin", "pytorch/two-stream.bin", "pytorch/gptj-f16/stream.bin",
                "pytorch/gpt2/training.bin", "pytorch/gpt2/one-storage.bin"],
    "gguf": ["gguf/llama/q4_0.gguf", "gguf/llama/split-00001-of-00003.gguf"],
    "config": ["pytorch/gptj-f16/config.json", "golden/gpt2-f32/config.json",
               "golden/llama3-rope-bf16-tied/config.json", "golden/llama-gqa-f32/config.json"],
    "tokenizer": ["tokenizers/gpt2/tokenizer.json", "tokenizers/bloom/tokenizer.json",
                  "tokenizers/llama3/tokenizer.json", "tokenizers/llama2/tokenizer.json",
                  "tokenizers/metaspace_always/tokenizer.json"],
    "sentencepiece": ["tokenizers/spm_llama/tokenizer.model", "tokenizers/spm_odd/tokenizer.model"],
}
PICKLES = ["pytorch/two.bin", "pytorch/gpt2/training.bin", "pytorch/gpt2/state-dict.bin"]


def pickle_of(path: pathlib.Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith("/data.pkl")))


def frames(*parts) -> bytes:
    """What a client of an agent sends: objects are messages, bytes are data (launcher/frame.h). "@" stands for the
    agent's folder."""
    raw = b""
    for part in parts:
        payload = part if isinstance(part, bytes) else json.dumps(part).encode()
        raw += struct.pack("<IB", len(payload), 2 if isinstance(part, bytes) else 1) + payload
    return raw


def agent_seeds(manifest: dict) -> dict[str, bytes]:
    store, job = {"store": "@/model"}, {"job": "job-0"}
    return {
        "questions": frames({"op": "hello"}, {"op": "ping"}, {"op": "store"} | store, {"op": "disk_rate"} | store, {"op": "verify"} | store,
                            {"op": "sink", "bytes": 3}, b"abc"),
        "files": frames({"op": "put", "name": "tokenizer/a.json", "bytes": 4} | store, b"ab", b"cd",
                        {"op": "read", "file": "tokenizer/vocab.json", "offset": 0, "bytes": 2} | store),
        "commit": frames({"op": "commit", "manifest": manifest} | store),
        "job": frames({"op": "job_folder"} | job, {"op": "put_job", "name": "tokens/tokens.json", "bytes": 2} | job, b"{}",
                      {"op": "job_files"} | job, {"op": "read_job", "name": "tokens/tokens.json"} | job, {"op": "end"} | job,
                      {"op": "forget_job"} | job),
        "orted": b'PATH=/opt/bin:$PATH;export PATH;/opt/bin/orted -mca ess "env" -mca uri "1.0;tcp://10.0.0.1:5"',
    }


def main() -> None:
    binary = sys.argv[1]
    shutil.rmtree(CORPUS, ignore_errors=True)
    for target, sources in COPIES.items():
        (CORPUS / target).mkdir(parents=True)
        for source in sources:
            shutil.copyfile(DATA / source, CORPUS / target / "-".join(source.split("/")[1:]))
    (CORPUS / "pickle").mkdir()
    for source in PICKLES:
        name = "-".join(source.split("/")[1:]).replace(".bin", ".pkl")
        (CORPUS / "pickle" / name).write_bytes(pickle_of(DATA / source))
    (CORPUS / "manifest").mkdir()
    with tempfile.TemporaryDirectory() as folder:
        store = pathlib.Path(folder) / "store"
        subprocess.run([binary, "import", DATA / "pytorch/gpt2", store, "--layers", "0:1",
                        "--weights", "bf16", "--quiet"], check=True)
        shutil.copyfile(store / "manifest.json", CORPUS / "manifest/gpt2.json")
        manifest = json.loads((store / "manifest.json").read_text())
    (CORPUS / "agent").mkdir()
    for name, seed in agent_seeds(manifest).items():
        (CORPUS / "agent" / name).write_bytes(seed)
    for path in CORPUS.rglob("*.*"):
        assert path.stat().st_size <= LIMIT_BYTES, path


if __name__ == "__main__":
    main()
