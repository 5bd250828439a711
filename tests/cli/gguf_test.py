"""GGUF files on the command line, against the safetensors that they were made from."""

import shutil
import unittest

from support import SOURCE, StoreTest, json_lines, run

FIXTURE = SOURCE / "tests/data/gguf/llama"


class Gguf(StoreTest):
    def imported(self, source, name):
        store = self.folder / name
        self.succeeds(run("import", FIXTURE / source, store, "--quiet"))
        return store

    def test_an_f16_file_gives_the_slabs_of_its_original(self):
        original, converted = self.imported("", "original"), self.imported("f16.gguf", "converted")
        slabs = sorted(path.name for path in original.glob("*.slab"))
        self.assertEqual(len(slabs), 4)
        for slab in slabs:
            self.assertEqual((converted / slab).read_bytes(), (original / slab).read_bytes(), slab)

    def test_a_split_set_gives_the_slabs_of_the_whole(self):
        whole = self.imported("q8_0.gguf", "whole")
        split = self.imported("split-00002-of-00003.gguf", "split")
        for slab in whole.glob("*.slab"):
            self.assertEqual((split / slab.name).read_bytes(), slab.read_bytes(), slab.name)

    def test_text_goes_in_and_comes_out_with_the_files_own_tokenizer(self):
        store = self.imported("f16.gguf", "store")
        for source in (FIXTURE / "f16.gguf", FIXTURE / "split-00003-of-00003.gguf", store):
            ids = self.succeeds(run("tokenize", source, "--string", "the cat in the band"))
            self.assertEqual(ids.stdout, "31 3 6 4 23 37 32 3 5 34\n")
        out = json_lines(self.succeeds(run("generate", "--store", store, "--prompt", "the cat", "--greedy",
                                           "--max-new-tokens", 5, "--json")))[0]
        by_ids = json_lines(self.succeeds(run("generate", "--store", self.imported("", "original"), "--prompt-ids",
                                              "31 3 6 4 23", "--greedy", "--max-new-tokens", 5, "--json")))[0]
        self.assertEqual(out["ids"], by_ids["ids"])
        self.assertTrue(out["text"])

    def test_what_cannot_be_imported_says_why(self):
        alone = self.folder / "alone"
        alone.mkdir()
        shutil.copy(FIXTURE / "q4_0.gguf", alone)
        self.fails(run("import", alone, self.folder / "s"), 3, f"stagecoach import {alone}/q4_0.gguf STORE")
        shutil.copy(FIXTURE / "split-00001-of-00003.gguf", alone)
        self.fails(run("import", alone / "split-00001-of-00003.gguf", self.folder / "s"), 3,
                   "split-00002-of-00003.gguf is missing")
        (alone / "x.gguf").write_bytes((FIXTURE / "f16.gguf").read_bytes()[:20000])
        self.fails(run("import", alone / "x.gguf", self.folder / "s"), 3, "truncated", "fetch it again")
        self.fails(run("import", FIXTURE / "config.json", self.folder / "s"), 3, "not a GGUF file")
        self.assertFalse((self.folder / "s").exists())


if __name__ == "__main__":
    unittest.main()
