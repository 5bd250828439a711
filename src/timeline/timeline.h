// What each rank did when: append-only spans with bytes and flops, always on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace stagecoach {

enum class SpanKind : std::uint8_t {
  kRead,        // disk → memory
  kVerify,      // checksum
  kWeightWait,  // compute waited for weights
  kEmbedding,
  kAttention,
  kMlp,
  kHead,
  kSample,
  kSend,
  kIdle,  // waited for a micro-batch
  kCopy,  // host memory → device
};
std::string_view span_kind_name(SpanKind kind);

enum class Phase : std::uint8_t { kNone, kPrefill, kDecode };
std::string_view phase_name(Phase phase);

struct Span {
  SpanKind kind = SpanKind::kRead;
  Phase phase = Phase::kNone;
  std::int32_t layer = -1;        // -1: not a layer's
  std::int64_t micro_batch = -1;  // number, -1: none
  // Repeat of `time`, generation step otherwise. Tables take medians over passes; negative passes
  // are warm-up: they stand in the trace only.
  std::int64_t pass = 0;
  std::int64_t bytes = 0;  // weights used, or bytes moved
  std::int64_t flops = 0;
  std::int64_t tokens = 0;
  std::int64_t begin_ns = 0;  // of this host's clock
  std::int64_t end_ns = 0;
};

// Thread-safe. Recording costs some tens of nanoseconds: a lock that is nearly always free and a
// copy into a block that is already there.
class Timeline {
 public:
  // Memory is bounded (kMaxSpans · 80 bytes, 21 MB) because generation may run for weeks: the first
  // kMaxSpans are kept, later ones dropped with one warning.
  static constexpr std::size_t kMaxSpans = std::size_t{1} << 18;

  void record(const Span& span);
  std::vector<Span> take();  // in the order of recording; and forget
  std::size_t size() const;

 private:
  // Blocks rather than one vector: growing never copies what is recorded while everybody waits.
  static constexpr std::size_t kBlockSpans = 4096;

  mutable std::mutex mutex_;
  std::vector<std::vector<Span>> blocks_;  // all full but the last
  std::size_t size_ = 0;
  bool warned_ = false;
};

// Times its own scope, or up to an end that is set. RAII only: a span that is begun is ended.
class ScopedSpan {
 public:
  ScopedSpan(Timeline& timeline, Span span) : timeline_(timeline), span_(span) {
    span_.begin_ns = now_ns();
  }
  ~ScopedSpan() {
    if (span_.end_ns == 0) span_.end_ns = now_ns();
    timeline_.record(span_);
  }
  ScopedSpan(const ScopedSpan&) = delete;
  ScopedSpan& operator=(const ScopedSpan&) = delete;
  Span& span() { return span_; }

 private:
  Timeline& timeline_;
  Span span_;
};

// A scope that may stand still for weights: its span is cut there, and what lies between is a
// kWeightWait span, so that spans still stand side by side.
class CutSpan {
 public:
  // Shorter stops are the cost of looking whether the weights are there: they cut nothing.
  static constexpr std::int64_t kShortest = 20'000;

  CutSpan(Timeline& timeline, const Span& span)
      : timed_(std::in_place, timeline, span), timeline_(timeline) {}
  // From `asked_ns` until now nothing was done. Bytes and flops so far stay with what was before.
  void stood_still_since(std::int64_t asked_ns);
  Span& span() { return timed_->span(); }

 private:
  std::optional<ScopedSpan> timed_;
  Timeline& timeline_;
};

// One rank's spans as they travel to rank 0 (the transport adds length and checksum).
// Little-endian:
//
//   header, 16 bytes   "SPAN", u16 version, u16 bytes per record, u64 count
//   record, 64 bytes   u8 kind, u8 phase, u16 zero, i32 layer,
//                      i64 micro_batch, pass, bytes, flops, tokens, begin_ns, end_ns
//
// decode_spans allocates in proportion to what arrived, whatever the count says, and throws
// data_error on anything that encode_spans cannot have written.
std::vector<std::byte> encode_spans(const std::vector<Span>& spans);
std::vector<Span> decode_spans(std::span<const std::byte> bytes);

}  // namespace stagecoach
