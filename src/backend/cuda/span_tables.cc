#include "backend/cuda/span_tables.h"

#include <bit>
#include <cstring>

#include "backend/device_scratch.h"
#include "backend/span_shape.h"
#include "base/error.h"

namespace stagecoach::cuda {
namespace {

std::int64_t pages_of(const KvSpan& span) {
  return (span.position + span.rows + kKvPageTokens - 1) / kKvPageTokens;
}

}  // namespace

SpanTables::SpanTables(ArgumentRing& ring)
    : ring_(ring), memory_(table_.of<std::byte>(kSpanTableBytes)) {}

// The spans, then of each its pages of keys and of values.
void SpanTables::send(std::span<const KvSpan> spans) {
  constexpr auto kPointer = static_cast<std::int64_t>(sizeof(std::byte*));
  sent_ = spans;
  if (spans.empty()) return;
  std::int64_t pages = 0;
  for (const KvSpan& span : spans) pages += pages_of(span);
  const auto spans_bytes = static_cast<std::int64_t>(spans.size_bytes());
  const std::int64_t bytes = spans_bytes + 2 * pages * kPointer;
  memory_ = table_.of<std::byte>(static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(ArgumentRing::aligned(bytes)))));
  std::byte* const table = ring_.begin(bytes);
  std::int64_t at = spans_bytes;
  for (std::size_t i = 0; i < spans.size(); ++i) {
    KvSpan span = spans[i];
    const std::int64_t list_bytes = pages_of(span) * kPointer;
    for (std::byte* const** list : {&span.key_pages, &span.value_pages}) {
      std::memcpy(table + at, *list, static_cast<std::size_t>(list_bytes));
      *list = reinterpret_cast<std::byte* const*>(memory_ + at);
      at += list_bytes;
    }
    std::memcpy(table + i * sizeof span, &span, sizeof span);
  }
  ring_.send(table, bytes, memory_);
}

DeviceSpans SpanTables::part(const KvSpan* spans, std::int64_t count) const {
  const std::int64_t first = spans - sent_.data();
  STAGECOACH_CHECK(first >= 0 && first + count <= static_cast<std::int64_t>(sent_.size()));
  const SpanShape shape = shape_of({spans, static_cast<std::size_t>(count)});
  return {.spans = reinterpret_cast<const KvSpan*>(memory_) + first,
          .count = count,
          .rows = shape.rows,
          .largest_rows = shape.largest_rows,
          .splits = shape.splits};
}

}  // namespace stagecoach::cuda
