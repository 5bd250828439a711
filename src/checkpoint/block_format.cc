#include "checkpoint/block_format.h"

#include <cstring>

namespace stagecoach {
namespace {

// Unaligned load: foreign writers align nothing.
template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

}  // namespace

BlockShape block_shape(BlockFormat format) {
  return format == BlockFormat::kF32 ? BlockShape{1, 4} : BlockShape{1, 2};
}

DType native_weights(BlockFormat format) {
  switch (format) {
    case BlockFormat::kF32:
      return DType::kF32;
    case BlockFormat::kF16:
      return DType::kF16;
    case BlockFormat::kBF16:
      return DType::kBF16;
  }
  return DType::kF32;
}

std::string_view block_format_name(BlockFormat format) {
  switch (format) {
    case BlockFormat::kF32:
      return "F32";
    case BlockFormat::kF16:
      return "F16";
    case BlockFormat::kBF16:
      return "BF16";
  }
  return "?";
}

void decode_blocks(BlockFormat format, const std::byte* blocks, std::int64_t count,
                   float* elements) {
  switch (format) {
    case BlockFormat::kF32:
      std::memcpy(elements, blocks, static_cast<std::size_t>(count) * sizeof(float));
      return;
    case BlockFormat::kF16:
      for (std::int64_t i = 0; i < count; ++i)
        elements[i] = f16_to_f32(load<std::uint16_t>(blocks + 2 * i));
      return;
    case BlockFormat::kBF16:
      for (std::int64_t i = 0; i < count; ++i)
        elements[i] = bf16_to_f32(load<std::uint16_t>(blocks + 2 * i));
      return;
  }
}

}  // namespace stagecoach
