#include "backend/cuda/span_tables.h"

#include <algorithm>
#include <cstring>

namespace stagecoach::cuda {
namespace {

std::int64_t pages_of(const KvSpan& span) {
  return (span.position + span.rows + kKvPageTokens - 1) / kKvPageTokens;
}

}  // namespace

// One table: the spans, then of each its pages of keys and of values.
DeviceSpans send_spans(ArgumentRing& ring, const KvSpan* spans, std::int64_t count) {
  constexpr auto kPointer = static_cast<std::int64_t>(sizeof(std::byte*));
  DeviceSpans result{.count = count};
  std::int64_t pages = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const KvSpan& span = spans[i];
    pages += pages_of(span);
    result.largest_rows = std::max(result.largest_rows, span.rows);
    if (span.rows == 1)
      result.longest_decoded = std::max(result.longest_decoded, span.position + span.rows);
  }
  const auto spans_bytes = count * static_cast<std::int64_t>(sizeof(KvSpan));
  const ArgumentRing::Table table = ring.begin(spans_bytes + 2 * pages * kPointer);
  std::int64_t at = spans_bytes;
  for (std::int64_t i = 0; i < count; ++i) {
    KvSpan span = spans[i];
    const std::int64_t bytes = pages_of(span) * kPointer;
    for (std::byte* const** list : {&span.key_pages, &span.value_pages}) {
      std::memcpy(table.host + at, *list, static_cast<std::size_t>(bytes));
      *list = reinterpret_cast<std::byte* const*>(table.device + at);
      at += bytes;
    }
    std::memcpy(table.host + i * static_cast<std::int64_t>(sizeof(KvSpan)), &span, sizeof span);
  }
  ring.send(table);
  result.spans = reinterpret_cast<const KvSpan*>(table.device);
  return result;
}

}  // namespace stagecoach::cuda
