#include "timeline/timeline.h"

#include <utility>

#include "base/log.h"

namespace stagecoach {

std::string_view span_kind_name(SpanKind kind) {
  switch (kind) {
    case SpanKind::kRead:
      return "read";
    case SpanKind::kVerify:
      return "verify";
    case SpanKind::kWeightWait:
      return "weight wait";
    case SpanKind::kEmbedding:
      return "embedding";
    case SpanKind::kAttention:
      return "attention";
    case SpanKind::kMlp:
      return "mlp";
    case SpanKind::kHead:
      return "head";
    case SpanKind::kSample:
      return "sample";
    case SpanKind::kSend:
      return "send";
    case SpanKind::kIdle:
      return "idle";
    case SpanKind::kCopy:
      return "copy";
  }
  return "?";
}

std::string_view phase_name(Phase phase) {
  switch (phase) {
    case Phase::kNone:
      return "none";
    case Phase::kPrefill:
      return "prefill";
    case Phase::kDecode:
      return "decode";
  }
  return "?";
}

void Timeline::record(const Span& span) {
  {
    const std::lock_guard lock(mutex_);
    if (size_ < kMaxSpans) {
      if (size_ % kBlockSpans == 0) blocks_.emplace_back().reserve(kBlockSpans);
      blocks_.back().push_back(span);
      ++size_;
      return;
    }
    if (std::exchange(warned_, true)) return;
  }
  spdlog::warn("the timeline is full: tables and reports cover the first {} spans of this rank",
               kMaxSpans);
}

void CutSpan::stood_still_since(std::int64_t asked_ns) {
  const std::int64_t now = now_ns();
  if (now - asked_ns < kShortest) return;
  Span wait = span();
  wait.kind = SpanKind::kWeightWait;
  wait.bytes = wait.flops = wait.tokens = 0;
  wait.begin_ns = asked_ns;
  wait.end_ns = now;
  Span rest = span();
  rest.bytes = rest.flops = 0;
  rest.end_ns = 0;
  span().end_ns = asked_ns;
  timed_.reset();
  timeline_.record(wait);
  timed_.emplace(timeline_, rest);
}

std::vector<Span> Timeline::take() {
  std::vector<std::vector<Span>> blocks;
  std::size_t count = 0;
  {
    const std::lock_guard lock(mutex_);
    blocks = std::exchange(blocks_, {});
    count = std::exchange(size_, 0);
    warned_ = false;
  }
  std::vector<Span> spans;
  spans.reserve(count);
  for (const std::vector<Span>& block : blocks)
    spans.insert(spans.end(), block.begin(), block.end());
  return spans;
}

std::size_t Timeline::size() const {
  const std::lock_guard lock(mutex_);
  return size_;
}

}  // namespace stagecoach
