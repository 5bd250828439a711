// Keys and values as they lie in a page (kv_page.h), and as float32. A kv head's dimensions are
// walked in strips of 32: one group of q8, and as many dimensions of a plain type.
#pragma once

#include <type_traits>

#include "kernels/cpu/tile.h"
#include "kernels/include/kv_page.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr std::int64_t kKeys = kKvPageTokens;
constexpr std::int64_t kStripDims = kKvGroupDims;

// The third storage type, beside AsF32 and AsF16.
struct AsKvQ8 {
  using Element = std::int8_t;
  static Vec load_vec(const std::int8_t* p) { return load_i8(p); }
};
template <typename Type>
constexpr bool kHasScales = std::is_same_v<Type, AsKvQ8>;

// Where the elements of the strip at dimension `d` begin, in bytes from the kv head's first one.
// Their scales end there.
template <typename Type>
inline std::int64_t key_offset(std::int64_t d) {
  if constexpr (kHasScales<Type>) return d / kKvGroupDims * kKvGroupBytes + kKvScalesBytes;
  return d * kKeys * static_cast<std::int64_t>(sizeof(typename Type::Element));
}
template <typename Type>
inline std::int64_t value_offset(std::int64_t d) {
  if constexpr (kHasScales<Type>) return key_offset<Type>(d);
  return d * static_cast<std::int64_t>(sizeof(typename Type::Element));
}
// Elements from one position's values to the next one's.
template <typename Type>
inline std::int64_t value_step(std::int64_t head_dim, std::int64_t d) {
  return kHasScales<Type> ? smaller(kKvGroupDims, head_dim - d) : head_dim;
}

template <typename Type>
inline const typename Type::Element* elements(const std::byte* head, std::int64_t offset) {
  return reinterpret_cast<const typename Type::Element*>(head + offset);
}
inline const std::uint16_t* scales(const std::byte* head, std::int64_t offset) {
  return reinterpret_cast<const std::uint16_t*>(head + offset - kKvScalesBytes);
}

// Keys of the strip at `d`, `dims` dimensions → (dims, 64) float32.
template <typename Type>
inline void expand_keys(const std::byte* head, std::int64_t d, std::int64_t dims, float* out) {
  const std::int64_t offset = key_offset<Type>(d);
  const typename Type::Element* source = elements<Type>(head, offset);
  constexpr int kVecs = kKeys / kLanes;
  Vec scale[kVecs];
  if constexpr (kHasScales<Type>)
    for (int v = 0; v < kVecs; ++v) scale[v] = load_bf16(scales(head, offset) + v * kLanes);
  for (std::int64_t i = 0; i < dims; ++i, source += kKeys, out += kKeys)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      Vec key = Type::load_vec(source + v * kLanes);
      if constexpr (kHasScales<Type>) key *= scale[v];
      store(out + v * kLanes, key);
    }
}

// The first `n` elements at p; the other lanes are zero.
template <typename Type>
inline Vec load_elements(const typename Type::Element* p, std::int64_t n) {
  if (n >= kLanes) return Type::load_vec(p);
  typename Type::Element padded[kLanes] = {};
  if (n > 0) __builtin_memcpy(padded, p, static_cast<std::size_t>(n) * sizeof(padded[0]));
  return Type::load_vec(padded);
}

inline Vec value_scale(const std::byte* head, std::int64_t offset, std::int64_t key) {
  const std::uint32_t scale = std::uint32_t{scales(head, offset)[key]} << 16;
  return broadcast(__builtin_bit_cast(float, scale));
}

// Values of `keys` positions in the strip at `d`, `dims` dimensions → (keys, 32) float32, of which
// whole panels are filled: with zeros beyond the last dimension.
template <typename Type>
inline void expand_values(const std::byte* head, std::int64_t head_dim, std::int64_t d,
                          std::int64_t dims, std::int64_t keys, float* out) {
  const std::int64_t offset = value_offset<Type>(d), step = value_step<Type>(head_dim, d);
  const typename Type::Element* source = elements<Type>(head, offset);
  const std::int64_t columns = (dims + kPanel - 1) / kPanel * kPanel;
  for (std::int64_t key = 0; key < keys; ++key, source += step, out += kStripDims)
    for (std::int64_t i = 0; i < columns; i += kLanes) {
      Vec value = load_elements<Type>(source + i, dims - i);
      if constexpr (kHasScales<Type>) value *= value_scale(head, offset, key);
      store(out + i, value);
    }
}

// What a single row does with q8 keys and values, converted in registers instead: the same products
// and sums as of a strip.
//
// scores (64) = q · keys.
inline void score_row(const float* q, std::int64_t head_dim, const std::byte* keys,
                      float* scores_out) {
  constexpr int kVecs = 4;  // sums, and as many scales, in registers
  for (std::int64_t key = 0; key < kKeys; key += kVecs * kLanes) {
    Vec sum[kVecs] = {};
    for (std::int64_t d = 0; d < head_dim; d += kStripDims) {
      const std::int64_t offset = key_offset<AsKvQ8>(d);
      const std::int8_t* source = elements<AsKvQ8>(keys, offset) + key;
      const std::int64_t dims = smaller(kStripDims, head_dim - d);
      Vec scale[kVecs];
      for (int v = 0; v < kVecs; ++v) scale[v] = load_bf16(scales(keys, offset) + key + v * kLanes);
      for (std::int64_t i = 0; i < dims; ++i, source += kKeys)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v)
          sum[v] =
              multiply_add(broadcast(q[d + i]), load_i8(source + v * kLanes) * scale[v], sum[v]);
    }
    for (int v = 0; v < kVecs; ++v) store(scores_out + key + v * kLanes, sum[v]);
  }
}

// out += weights · values of the first `keys` positions, in whole groups of dimensions. Returns how
// many dimensions these are.
inline std::int64_t add_row_values(const float* weights, std::int64_t keys, std::int64_t head_dim,
                                   const std::byte* values, float* out) {
  std::int64_t d = 0;
  for (; d + kStripDims <= head_dim; d += kStripDims, out += kStripDims) {
    const std::int64_t offset = value_offset<AsKvQ8>(d);
    const std::int8_t* source = elements<AsKvQ8>(values, offset);
    constexpr int kVecs = kStripDims / kLanes;
    Vec sum[kVecs];
    for (int v = 0; v < kVecs; ++v) sum[v] = load(out + v * kLanes);
    for (std::int64_t key = 0; key < keys; ++key, source += kStripDims) {
      const Vec scale = value_scale(values, offset, key);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        sum[v] =
            multiply_add(broadcast(weights[key]), load_i8(source + v * kLanes) * scale, sum[v]);
    }
    for (int v = 0; v < kVecs; ++v) store(out + v * kLanes, sum[v]);
  }
  return d;
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
