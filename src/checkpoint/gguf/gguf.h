// The GGUF container, versions 2 and 3 (https://github.com/ggml-org/ggml, docs/gguf.md):
//
//   "GGUF" | u32 version | u64 tensors | u64 pairs | pairs | tensor infos | padding | tensor data
//
// little-endian. Everything before the data is checked completely before any of it is believed, and
// nothing is allocated that the file's own size does not cover.
#pragma once

#include <filesystem>

#include "checkpoint/gguf/gguf_metadata.h"
#include "checkpoint/tensor_set.h"

namespace stagecoach {

struct GgufCheckpoint {
  GgufMetadata metadata;  // of the first file
  TensorSet set;          // shapes in PyTorch's order
};

// `path` is a file or any file of a split set (NAME-00001-of-00005.gguf), all of which are opened.
// Throws data_error.
GgufCheckpoint read_gguf(const std::filesystem::path& path);

}  // namespace stagecoach
