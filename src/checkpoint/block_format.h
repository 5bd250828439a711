// How a checkpoint stores the elements of a tensor: one by one, or in quantised blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/include/dtype.h"

namespace stagecoach {

enum class BlockFormat : std::uint8_t {
  kF32,
  kF16,
  kBF16,
  // GGUF's quantised blocks of 32 elements, and of 256 (gguf_blocks.h).
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

// Elements that are stored together, and their bytes: {1, 2} for f16.
struct BlockShape {
  std::int64_t elements, bytes;
};
BlockShape block_shape(BlockFormat format);

// The type in which weights of this format are stored when --weights does not say: the format's
// own, or f16 for quantised blocks.
DType native_weights(BlockFormat format);

// "F32", "BF16" …
std::string_view block_format_name(BlockFormat format);

// Decodes `count` elements, a multiple of the block's, from unaligned little-endian bytes.
void decode_blocks(BlockFormat format, const std::byte* blocks, std::int64_t count,
                   float* elements);

}  // namespace stagecoach
