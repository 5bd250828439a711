// A small language for timelines: what happened on a rank, one call a span.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "timeline/report.h"

namespace stagecoach {

class RankBuilder {
 public:
  RankBuilder(int rank, std::string host) {
    timeline_.rank = rank;
    timeline_.host = std::move(host);
  }
  // Spans added from here on carry this label.
  RankBuilder& label(Phase phase, std::int64_t pass, std::int64_t micro_batch) {
    label_ = {.phase = phase, .micro_batch = micro_batch, .pass = pass};
    return *this;
  }
  // Times in microseconds: what tests look at is far above the 20 µs of a wait that counts.
  RankBuilder& add(SpanKind kind, std::int64_t begin_us, std::int64_t end_us,
                   std::int32_t layer = -1, std::int64_t bytes = 0) {
    Span span = label_;
    span.kind = kind;
    span.layer = layer;
    span.bytes = bytes;
    span.tokens = kind == SpanKind::kAttention || kind == SpanKind::kMlp ? 8 : 0;
    span.begin_ns = begin_us * 1000;
    span.end_ns = end_us * 1000;
    timeline_.spans.push_back(span);
    return *this;
  }
  RankBuilder& clock_offset_us(std::int64_t offset) {
    timeline_.clock.begin = {.offset_ns = offset * 1000, .uncertainty_ns = 0, .measured_ns = 1};
    return *this;
  }
  operator RankTimeline() const { return timeline_; }  // NOLINT: the point of a builder

 private:
  RankTimeline timeline_;
  Span label_;
};

}  // namespace stagecoach
