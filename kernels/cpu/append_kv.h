#pragma once

#include "kernels/cpu/tile.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// Rows of one kv head that fall into one page, from `slot` on.
struct PageRows {
  const float* k;  // (rows, head_dim), stride apart
  const float* v;
  std::int64_t stride, rows, slot;
  float* keys;    // (head_dim, kKvPageTokens)
  float* values;  // (kKvPageTokens, head_dim)
};

inline void append_to_page(const PageRows& page, std::int64_t head_dim) {
  for (std::int64_t r = 0; r < page.rows; ++r)
    __builtin_memcpy(page.values + (page.slot + r) * head_dim, page.v + r * page.stride,
                     static_cast<std::size_t>(head_dim) * sizeof(float));
  // Transposed in strips of 16 dimensions, one cache line of every row: rows are many pages apart,
  // and walking them once per dimension would miss the cache every time.
  for (std::int64_t d = 0; d < head_dim; d += kPanel) {
    const std::int64_t n = head_dim - d < kPanel ? head_dim - d : kPanel;
    float strip[kKvPageTokens][kPanel];
    for (std::int64_t r = 0; r < page.rows; ++r)
      __builtin_memcpy(strip[r], page.k + r * page.stride + d,
                       static_cast<std::size_t>(n) * sizeof(float));
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t r = 0; r < page.rows; ++r)
        page.keys[(d + i) * kKvPageTokens + page.slot + r] = strip[r][i];
  }
}

inline void append_kv(const AppendKvArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t page_size = kKvPageTokens * args.head_dim;
  for (std::int64_t s = 0; s < args.num_spans; ++s) {
    const KvSpan& span = args.spans[s];
    for (std::int64_t r = 0; r < span.rows;) {
      const std::int64_t position = span.position + r;
      const std::int64_t slot = position % kKvPageTokens;
      const std::int64_t left = span.rows - r;
      const std::int64_t rows = left < kKvPageTokens - slot ? left : kKvPageTokens - slot;
      float* const keys = span.key_pages[position / kKvPageTokens];
      float* const values = span.value_pages[position / kKvPageTokens];
      for (std::int64_t head = begin; head < end; ++head) {
        const std::int64_t source = (span.row + r) * args.stride + head * args.head_dim;
        append_to_page({args.k + source, args.v + source, args.stride, rows, slot,
                        keys + head * page_size, values + head * page_size},
                       args.head_dim);
      }
      r += rows;
    }
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
