// How keys and values lie in memory. Those of one layer live in pages of kKvPageTokens positions,
// anchored at position 0. A page of keys holds the kv heads one after the other, each
// kv_head_bytes() long, and a page of values likewise:
//
//   f32, f16   keys    (head_dim, 64)      transposed, so that scores vectorise over keys
//              values  (64, head_dim)
//
//   q8         keys and values both as groups of 32 dimensions (the last one: the n that are left):
//
//                  bf16 scale[64]          one per position               128 bytes
//                  keys:   i8 quant[n][64]                               64 n bytes
//                  values: i8 quant[64][n]
//
//              group g begins at byte g · (128 + 64 · 32); value = quant · scale, exact in float32.
//
// What becomes of a float32 x that is appended depends on its own position alone (q8: on the 32
// dimensions of its group), so prefill and decode write the same bits:
//
//   f16   rounds to nearest, ties to even. Finite values beyond ±65504 become ±65504: one outlier
//         must not turn a whole row's softmax into NaN. Infinity and NaN stay what they are.
//   q8    scale = bf16(m / 127) for the largest magnitude m, quant = x / scale to the nearest, ties
//         to even. A bfloat16 has float32's range: no scale overflows or turns subnormal, as in
//         f16. Its few bits cost next to nothing, since quants round to the scale as it is stored.
//         Groups whose m is below 2⁻¹⁰⁰ are zero; a group with an infinity or a NaN has scale NaN
//         and reads as NaN throughout.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stagecoach {

enum class KvType : std::uint8_t { kF32, kF16, kQ8 };

inline constexpr std::int64_t kKvPageTokens = 64;
inline constexpr std::int64_t kKvGroupDims = 32;  // q8: dimensions that share a position's scale
inline constexpr std::int64_t kKvScalesBytes = 2 * kKvPageTokens;  // q8: in front of each group
inline constexpr std::int64_t kKvGroupBytes = kKvScalesBytes + kKvPageTokens * kKvGroupDims;
inline constexpr float kKvSmallestGroup = 0x1p-100f;

// Of the keys, and again of the values, of one kv head in one page.
constexpr std::int64_t kv_head_bytes(KvType type, std::int64_t head_dim) {
  const std::int64_t elements = kKvPageTokens * head_dim;
  if (type == KvType::kF32) return 4 * elements;
  if (type == KvType::kF16) return 2 * elements;
  return elements + (head_dim + kKvGroupDims - 1) / kKvGroupDims * kKvScalesBytes;
}

}  // namespace stagecoach
