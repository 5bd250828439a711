// The types that a tensor of a GGUF file can have.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/block_format.h"

namespace stagecoach {

struct GgufTensorType {
  std::uint32_t id;
  std::string_view name;
  std::int64_t elements = 1, bytes = 0;  // of a block; 0 bytes: this build cannot read it
  std::optional<BlockFormat> format;     // null: not a type that weights can have
};

// Null for ids that nobody has given a meaning.
const GgufTensorType* find_gguf_tensor_type(std::uint32_t id);

// "F32, F16, …": those that weights can have.
std::string gguf_tensor_type_names();

}  // namespace stagecoach
