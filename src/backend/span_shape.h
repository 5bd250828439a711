// What launching ops over the spans of a batch depends on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/include/decode_splits.h"
#include "kernels/include/ops.h"

namespace stagecoach {

struct SpanShape {
  std::int64_t count = 0;
  std::int64_t rows = 0;          // of all spans
  std::int64_t largest_rows = 0;  // of a span
  std::int64_t splits = 0;        // of the keys of spans of one row (decode_splits); 0: none

  auto operator<=>(const SpanShape&) const = default;
};

inline SpanShape shape_of(std::span<const KvSpan> spans) {
  SpanShape shape{.count = static_cast<std::int64_t>(spans.size())};
  std::int64_t longest = 0;
  for (const KvSpan& span : spans) {
    shape.rows += span.rows;
    shape.largest_rows = std::max(shape.largest_rows, span.rows);
    if (span.rows == 1) longest = std::max(longest, span.position + 1);
  }
  shape.splits = decode_splits(longest);
  return shape;
}

}  // namespace stagecoach
