// One safetensors file: u64 header length | JSON header | packed little-endian tensors up to the
// end (https://github.com/huggingface/safetensors, README "Format"). The header is validated
// completely, in the reference implementation's order, before any of it is believed; tensor data is
// never mapped or assumed aligned.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "checkpoint/block_format.h"

namespace stagecoach {

struct SafetensorsEntry {
  std::string dtype;                // as the file spells it: "BF16", "BOOL"
  std::vector<std::int64_t> shape;  // row-major; empty for a scalar
  std::int64_t offset = 0;          // from the start of the file
  std::int64_t bytes = 0;

  // Null for types that no weight can have here; such a tensor can only be dropped.
  std::optional<BlockFormat> format() const;
};

class SafetensorsFile {
 public:
  // Symbolic links are followed (Hugging Face's cache consists of them). Throws data_error.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const File& file() const { return *file_; }
  std::unique_ptr<File> take_file() { return std::move(file_); }
  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  std::uint64_t header_hash() const { return header_hash_; }  // XXH3 of the JSON header

 private:
  std::unique_ptr<File> file_;
  std::map<std::string, SafetensorsEntry> tensors_;
  std::uint64_t header_hash_ = 0;
};

}  // namespace stagecoach
