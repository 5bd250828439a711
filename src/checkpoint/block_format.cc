#include "checkpoint/block_format.h"

#include <array>
#include <cstring>

#include "checkpoint/gguf/gguf_blocks.h"

namespace stagecoach {
namespace {

struct FormatFacts {
  std::string_view name;
  BlockShape shape;
  DType native;
};

// In the order of the enumeration.
constexpr std::array<FormatFacts, 13> kFormats = {{
    {"F32", {1, 4}, DType::kF32},
    {"F16", {1, 2}, DType::kF16},
    {"BF16", {1, 2}, DType::kBF16},
    {"Q8_0", {32, 34}, DType::kF16},
    {"Q4_0", {32, 18}, DType::kF16},
    {"Q4_1", {32, 20}, DType::kF16},
    {"Q5_0", {32, 22}, DType::kF16},
    {"Q5_1", {32, 24}, DType::kF16},
    {"Q2_K", {256, 84}, DType::kF16},
    {"Q3_K", {256, 110}, DType::kF16},
    {"Q4_K", {256, 144}, DType::kF16},
    {"Q5_K", {256, 176}, DType::kF16},
    {"Q6_K", {256, 210}, DType::kF16},
}};
static_assert(kFormats.size() == static_cast<std::size_t>(BlockFormat::kQ6_K) + 1);

const FormatFacts& facts(BlockFormat format) {
  return kFormats[static_cast<std::size_t>(format)];
}

// Unaligned load: foreign writers align nothing.
template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

}  // namespace

BlockShape block_shape(BlockFormat format) {
  return facts(format).shape;
}

DType native_weights(BlockFormat format) {
  return facts(format).native;
}

std::string_view block_format_name(BlockFormat format) {
  return facts(format).name;
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
    default:
      decode_quantised_blocks(format, blocks, count, elements);
  }
}

}  // namespace stagecoach
