// One safetensors file: u64 header length | JSON header | packed little-endian tensors up to the
// end (https://github.com/huggingface/safetensors, README "Format"). The header is validated
// completely, in the reference implementation's order, before any of it is believed; tensor data is
// never mapped or assumed aligned.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "kernels/include/dtype.h"

namespace stagecoach {

struct SafetensorsEntry {
  std::string dtype;                // as the file spells it: "BF16", "BOOL"
  std::vector<std::int64_t> shape;  // row-major; empty for a scalar
  std::int64_t offset = 0;          // from the start of the file
  std::int64_t bytes = 0;

  // Null for types that no weight can have here; such a tensor can only be dropped.
  std::optional<DType> type() const;
};

class SafetensorsFile {
 public:
  // Symbolic links are followed (Hugging Face's cache consists of them). Throws data_error.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const File& file() const { return file_; }
  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }
  std::uint64_t header_hash() const { return header_hash_; }  // XXH3 of the JSON header

 private:
  File file_;
  std::map<std::string, SafetensorsEntry> tensors_;
  std::uint64_t header_hash_ = 0;
};

// A name out of a foreign file, quoted, escaped to ASCII and cut to a printable length: hostile
// names must not reach a terminal as they are.
std::string quote_name(std::string_view name);

// "[3, 4]".
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace stagecoach
