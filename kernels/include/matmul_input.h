// The left side of a matrix product: rows of activations, as the engine computes them or packed for
// the instructions that multiply them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/include/dtype.h"
#include "kernels/include/pack.h"

namespace stagecoach {

// kF32   float32; weights of every type.
// kBF16  bfloat16, rounded to nearest even, for bf16 dot products (KernelTable::matmul_bf16). An
// odd
//        width is filled up with one 0. Weights: bf16, q8, q4.
// kF16   binary16, likewise, saturated (finite values stay finite): of GPUs only. Weights: f16, q8,
// q4.
// kInt8  quantised, one scale for each group of kGroupCols columns of a row: InputGroups, the last
//        filled up with 0. Weights: q8, q4.
enum class InputType : std::uint8_t { kF32, kBF16, kInt8, kF16 };

// value = quant · scale, |quant| ≤ 127: nearest even multiple of the group's largest magnitude
// ÷ 127. Groups below 2⁻¹⁰⁰ are 0; a group with a value that is not finite has scale NaN.
inline constexpr float kSmallestInputGroup = 0x1p-100f;
struct InputGroup {
  float scale;
  // −8 · Σ quant: what makes weights that are stored 8 (or, 16 times as much, 128) above their
  // value come out right.
  std::int32_t minus_8_sum;
  std::int8_t quant[kGroupCols];
};

// Rows that products read, `stride` bytes apart.
struct InputRows {
  const std::byte* data;
  std::int64_t stride;
  InputType type;
};

// float32 rows, `stride` elements apart.
inline InputRows f32_rows(const float* x, std::int64_t stride) {
  return {reinterpret_cast<const std::byte*>(x), stride * static_cast<std::int64_t>(sizeof(float)),
          InputType::kF32};
}

// Bytes from one packed row to the next: an odd number of cache lines, since a tile reads the same
// column of several rows at once, and rows a multiple of 4 KiB apart would compete for one set of
// the cache.
constexpr std::int64_t packed_row_stride(InputType type, std::int64_t cols) {
  constexpr std::int64_t kLine = 64;
  std::int64_t bytes = cols * 4;
  if (type == InputType::kBF16 || type == InputType::kF16) bytes = (cols + 1) / 2 * 4;
  if (type == InputType::kInt8)
    bytes = (cols + kGroupCols - 1) / kGroupCols * static_cast<std::int64_t>(sizeof(InputGroup));
  return ((bytes + kLine - 1) / kLine | 1) * kLine;
}

}  // namespace stagecoach
