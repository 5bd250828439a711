// What each rank did when: append-only spans with bytes and flops, always on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

namespace stagecoach {

enum class SpanKind : std::uint8_t {
  kRead,       // disk → memory
  kVerify,     // checksum
  kWeightWait, // compute waited for weights
  kEmbedding, kAttention, kMlp, kHead, kSample,
  kSend, kReceive,
  kIdle,       // waited for a micro-batch
};
std::string_view span_kind_name(SpanKind kind);

enum class Phase : std::uint8_t { kNone, kPrefill, kDecode };
std::string_view phase_name(Phase phase);

struct Span {
  SpanKind kind = SpanKind::kRead;
  Phase phase = Phase::kNone;
  std::int32_t layer = -1;        // -1: not a layer's
  std::int64_t micro_batch = -1;  // number, -1: none
  std::int64_t bytes = 0;         // weights used, or bytes moved
  std::int64_t flops = 0;
  std::int64_t tokens = 0;
  std::int64_t begin_ns = 0;      // of this host's clock
  std::int64_t end_ns = 0;
};

class Timeline {
 public:
  void record(const Span& span);
  std::vector<Span> take();  // and forget
  std::size_t size() const;

 private:
  mutable std::mutex mutex_;
  std::vector<Span> spans_;
};

// Times its own scope. RAII only: a span that is begun is ended.
class ScopedSpan {
 public:
  ScopedSpan(Timeline& timeline, Span span) : timeline_(timeline), span_(span) { span_.begin_ns = now_ns(); }
  ~ScopedSpan() {
    span_.end_ns = now_ns();
    timeline_.record(span_);
  }
  ScopedSpan(const ScopedSpan&) = delete;
  ScopedSpan& operator=(const ScopedSpan&) = delete;
  Span& span() { return span_; }

 private:
  Timeline& timeline_;
  Span span_;
};

// One rank's spans as they travel to rank 0 (magic, version, count, checksum by the transport).
std::vector<std::byte> encode_spans(const std::vector<Span>& spans);
std::vector<Span> decode_spans(std::span<const std::byte> bytes);

}  // namespace stagecoach
