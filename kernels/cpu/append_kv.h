#pragma once

#include "kernels/cpu/kv.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// Rows of one kv head that fall into one page, from `slot` on.
struct PageRows {
  const float* k;  // (rows, head_dim), stride apart
  const float* v;
  std::int64_t stride, rows, slot;
  std::byte* keys;  // of the kv head
  std::byte* values;
};

// Up to 32 dimensions of one position, as they are stored.
template <typename Type>
struct Encoded {
  typename Type::Element elements[kStripDims];
  std::uint16_t scale = 0;
};

// Finite values beyond float16's range become its ends.
inline Vec saturate_f16(Vec v) {
  constexpr float kLargest = 65504.0f, kInfinity = __builtin_inff();
  v = (v > kLargest) & (v < kInfinity) ? broadcast(kLargest) : v;
  return (v < -kLargest) & (v > -kInfinity) ? broadcast(-kLargest) : v;
}

inline void encode(const float* x, std::int64_t n, Encoded<AsF32>& to) {
  __builtin_memcpy(to.elements, x, static_cast<std::size_t>(n) * sizeof(float));
}

inline void encode(const float* x, std::int64_t n, Encoded<AsF16>& to) {
  for (std::int64_t i = 0; i < n; i += kLanes)
    store_f16(to.elements + i, saturate_f16(load_first(x + i, n - i)));
}

inline void encode(const float* x, std::int64_t n, Encoded<AsKvQ8>& to) {
  constexpr std::uint16_t kNan = 0x7fc0;
  Vec group[kStripDims / kLanes] = {};
  for (std::int64_t i = 0; i < n; i += kLanes) group[i / kLanes] = load_first(x + i, n - i);
  Vec most = {}, finite = {};
  for (const Vec v : group) {
    most = max(v < 0.0f ? -v : v, most);
    finite += v - v;  // NaN for an infinity or a NaN, else 0
  }
  const float largest = max_lanes(most), zero = sum_lanes(finite);
  to = {};
  if (zero != 0.0f) to.scale = kNan;
  if (zero != 0.0f || largest < kKvSmallestGroup) return;
  const std::uint32_t exact = __builtin_bit_cast(std::uint32_t, largest / 127.0f);
  to.scale = static_cast<std::uint16_t>((exact + 0x7fffu + (exact >> 16 & 1u)) >> 16);
  const float scale = __builtin_bit_cast(float, std::uint32_t{to.scale} << 16);
  // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits. A rounded scale lets
  // no quotient reach 127.5: bfloat16 errs by at most 2⁻⁹.
  const Vec rounder = broadcast(0x1.8p23f);
  for (std::int64_t v = 0; v < kStripDims / kLanes; ++v)
    store_i8(to.elements + v * kLanes, (IntVec)(group[v] / scale + rounder) - (IntVec)rounder);
}

// One strip of 32 dimensions at a time: a cache line or two of every row. Rows of k are many pages
// apart, and walking them once per dimension would miss the cache every time.
template <typename Type>
inline void append_strip(const PageRows& page, std::int64_t head_dim, std::int64_t d) {
  using Element = typename Type::Element;
  const std::int64_t dims = smaller(kStripDims, head_dim - d);
  const std::int64_t key_at = key_offset<Type>(d), value_at = value_offset<Type>(d);
  const auto place_scale = [&](std::byte* head, std::int64_t offset, std::int64_t r,
                               std::uint16_t scale) {
    if constexpr (kHasScales<Type>)
      reinterpret_cast<std::uint16_t*>(head + offset - kKvScalesBytes)[page.slot + r] = scale;
  };
  Encoded<Type> rows[kKeys];
  for (std::int64_t r = 0; r < page.rows; ++r) {
    encode(page.k + r * page.stride + d, dims, rows[r]);
    place_scale(page.keys, key_at, r, rows[r].scale);
  }
  auto* keys = reinterpret_cast<Element*>(page.keys + key_at) + page.slot;
  for (std::int64_t i = 0; i < dims; ++i, keys += kKeys)
    for (std::int64_t r = 0; r < page.rows; ++r) keys[r] = rows[r].elements[i];

  const std::int64_t step = value_step<Type>(head_dim, d);
  auto* values = reinterpret_cast<Element*>(page.values + value_at) + page.slot * step;
  for (std::int64_t r = 0; r < page.rows; ++r, values += step) {
    Encoded<Type> row;
    encode(page.v + r * page.stride + d, dims, row);
    place_scale(page.values, value_at, r, row.scale);
    __builtin_memcpy(values, row.elements, static_cast<std::size_t>(dims) * sizeof(Element));
  }
}

template <typename Type>
inline void append_typed(const AppendKvArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t head_bytes = kv_head_bytes(args.kv_type, args.head_dim);
  for (std::int64_t s = 0; s < args.num_spans; ++s) {
    const KvSpan& span = args.spans[s];
    for (std::int64_t r = 0; r < span.rows;) {
      const std::int64_t position = span.position + r;
      const std::int64_t slot = position % kKeys;
      const std::int64_t rows = smaller(span.rows - r, kKeys - slot);
      std::byte* const keys = span.key_pages[position / kKeys];
      std::byte* const values = span.value_pages[position / kKeys];
      for (std::int64_t head = begin; head < end; ++head) {
        const std::int64_t source = (span.row + r) * args.stride + head * args.head_dim;
        const PageRows page = {
            args.k + source,          args.v + source,           args.stride, rows, slot,
            keys + head * head_bytes, values + head * head_bytes};
        for (std::int64_t d = 0; d < args.head_dim; d += kStripDims)
          append_strip<Type>(page, args.head_dim, d);
      }
      r += rows;
    }
  }
}

inline void append_kv(const AppendKvArgs& args, std::int64_t begin, std::int64_t end) {
  switch (args.kv_type) {
    case KvType::kF32:
      return append_typed<AsF32>(args, begin, end);
    case KvType::kF16:
      return append_typed<AsF16>(args, begin, end);
    case KvType::kQ8:
      return append_typed<AsKvQ8>(args, begin, end);
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
