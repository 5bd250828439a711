// All tensors of a checkpoint by name, whatever container holds them: where their elements lie and
// how they are stored. Plain data; the container's reader has checked every extent against its
// file.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "checkpoint/block_format.h"

namespace stagecoach {

struct StoredTensor {
  const File* file = nullptr;          // owned by the set
  std::int64_t offset = 0, bytes = 0;  // the extent of the file that holds all elements
  std::vector<std::int64_t> shape;     // outermost first, as in PyTorch
  std::vector<std::int64_t> strides;   // in elements, as in PyTorch; empty: packed row-major
  std::string type;                    // as the file calls it: "BF16", "Q4_K", "LongStorage"
  std::optional<BlockFormat> format;   // null: not a type that weights can have
};

struct TensorSet {
  std::vector<std::unique_ptr<File>> files;
  std::map<std::string, StoredTensor> tensors;
  // Names the files and their state: what a resumed import compares. A reader adds to
  // file_identity what it knows of the file's content.
  std::string identity;
};

// "; model.bin 123 bytes, modified 456".
std::string file_identity(const File& file);

// Of one type and shape, and the same bytes. Reads both.
bool same_content(const StoredTensor& a, const StoredTensor& b);

}  // namespace stagecoach
