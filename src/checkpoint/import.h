// Writes a store from any WeightSource.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/weight_source.h"
#include "store/manifest.h"

namespace stagecoach {

struct ImportOptions {
  std::optional<DType> weights = {};  // default: the source's own type
  std::int64_t layer_begin = 0;       // half-open; end -1: all
  std::int64_t layer_end = -1;
  std::int64_t distinct_layers = 0;  // 0: every layer has its own slab
  bool tokenizer = true;             // copy the source's tokenizer files
  int threads = 1;
  std::string name = {}, version = "1";  // name empty: the source's
  std::map<std::string, std::string> metadata = {};
  // bytes done and in total; called often, from the calling thread.
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};
  std::function<bool()> interrupted = {};  // polled between chunks; true stops with kInterrupted
};

// Layers [begin, end) with the embedding if begin is 0 and the head if end is the last; a head that
// is tied brings the embedding it multiplies with, wherever begin is. With distinct_layers = K,
// layer l uses the slab of layer l % K. Bad settings and an existing store are usage_errors; after
// a data_error nothing is left; after anything else (full disk, Ctrl-C) the same call resumes.
Manifest import_store(WeightSource& source, const std::filesystem::path& store,
                      const ImportOptions& options);

// A Hugging Face directory: config.json, model.safetensors or its shards, tokenizer files.
// Everything is checked (names, shapes, types, leftovers) before this returns; nothing has been
// read but headers.
std::unique_ptr<WeightSource> open_huggingface(const std::filesystem::path& directory);

// A GGUF file, or any file of a split set. `tokenizer`: with the tokenizer's files, which throws
// where the file's tokenizer is of a kind that is not supported.
std::unique_ptr<WeightSource> open_gguf(const std::filesystem::path& path, bool tokenizer = true);

// Whichever of the two `path` is: a directory or a file.
std::unique_ptr<WeightSource> open_checkpoint(const std::filesystem::path& path,
                                              bool tokenizer = true);

// The tokenizer's files of either, by name; empty where there are none. Reads no weights.
std::map<std::string, std::string> checkpoint_tokenizer_files(const std::filesystem::path& path);

// Random weights at a config's shape: GPT-2's initialisation (normal, 0.02; residual projections
// 0.02 / sqrt(2 · layers); norms 1, biases 0), drawn from a counter-based generator keyed by
// (seed, tensor, element), so that any part of any tensor can be made alone and in parallel.
// `preset` is a name of configs/presets.json or the path of a config.json.
std::unique_ptr<WeightSource> open_random(const std::string& preset, std::uint64_t seed);

// Names of the presets that are compiled in, with their parameter counts' specs.
std::vector<std::pair<std::string, ModelSpec>> presets();

// config.json (either spelling of transformers 4 and 5) → ModelSpec, by the family description
// in configs/models/ that matches. Throws data_error naming an unknown architecture, activation or
// rope type and listing what works. `generation` may be null.
ModelSpec resolve_config(const Json& config, const Json* generation, const std::string& where);

}  // namespace stagecoach
