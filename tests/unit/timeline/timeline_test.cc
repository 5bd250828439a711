#include "timeline/timeline.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <thread>

#include "base/error.h"

namespace stagecoach {
namespace {

Span numbered(std::int64_t i) {
  return {.kind = SpanKind::kMlp,
          .phase = Phase::kDecode,
          .layer = 3,
          .micro_batch = i,
          .begin_ns = i,
          .end_ns = i + 1};
}

TEST(Timeline, TakesInOrderAcrossBlocksAndForgets) {
  Timeline timeline;
  constexpr std::int64_t kCount = 10'000;  // more than two blocks
  for (std::int64_t i = 0; i < kCount; ++i) timeline.record(numbered(i));
  EXPECT_EQ(timeline.size(), static_cast<std::size_t>(kCount));
  const std::vector<Span> spans = timeline.take();
  ASSERT_EQ(spans.size(), static_cast<std::size_t>(kCount));
  for (std::int64_t i = 0; i < kCount; ++i)
    ASSERT_EQ(spans[static_cast<std::size_t>(i)].micro_batch, i);
  EXPECT_EQ(timeline.size(), 0u);
  EXPECT_TRUE(timeline.take().empty());
  timeline.record(numbered(7));
  EXPECT_EQ(timeline.take().at(0).micro_batch, 7);
}

TEST(Timeline, ThreadsLoseNothing) {
  Timeline timeline;
  constexpr int kThreads = 4, kEach = 5'000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t)
    threads.emplace_back([&timeline, t] {
      for (int i = 0; i < kEach; ++i) timeline.record({.layer = t, .micro_batch = i});
    });
  for (std::thread& thread : threads) thread.join();
  std::vector<std::int64_t> next(kThreads, 0);
  for (const Span& span : timeline.take())
    ASSERT_EQ(span.micro_batch, next[static_cast<std::size_t>(span.layer)]++);
  EXPECT_EQ(next, std::vector<std::int64_t>(kThreads, kEach));
}

TEST(Timeline, MemoryIsBoundedAndTheFirstSpansStay) {
  Timeline timeline;
  const auto limit = static_cast<std::int64_t>(Timeline::kMaxSpans);
  for (std::int64_t i = 0; i < limit + 100; ++i) timeline.record(numbered(i));
  EXPECT_EQ(timeline.size(), Timeline::kMaxSpans);
  EXPECT_EQ(timeline.take().back().micro_batch, limit - 1);
  timeline.record(numbered(1));
  EXPECT_EQ(timeline.size(), 1u);
}

TEST(ScopedSpan, EndsEvenWhenAnErrorPasses) {
  Timeline timeline;
  try {
    ScopedSpan timed(timeline, {.kind = SpanKind::kHead});
    timed.span().bytes = 12;
    throw data_error("x");
  } catch (const Error&) {
  }
  const std::vector<Span> spans = timeline.take();
  ASSERT_EQ(spans.size(), 1u);
  EXPECT_EQ(spans[0].bytes, 12);
  EXPECT_GT(spans[0].begin_ns, 0);
  EXPECT_LE(spans[0].begin_ns, spans[0].end_ns);
}

TEST(Names, EveryKindAndPhaseHasItsOwn) {
  std::vector<std::string_view> names;
  for (int kind = 0; kind <= static_cast<int>(SpanKind::kCopy); ++kind)
    names.push_back(span_kind_name(static_cast<SpanKind>(kind)));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
  EXPECT_EQ(std::count(names.begin(), names.end(), "?"), 0);
  EXPECT_EQ(phase_name(Phase::kPrefill), "prefill");
  EXPECT_EQ(phase_name(Phase::kDecode), "decode");
}

class SpanCodec : public testing::Test {
 protected:
  template <typename T>
  void put(std::size_t offset, T value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof(value));
  }
  void expect_refused(const char* why) {
    try {
      decode_spans(bytes_);
      ADD_FAILURE() << why;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kData) << why;
      EXPECT_FALSE(e.hint().empty());
    }
  }

  static constexpr std::size_t kFirst = 16;  // the first record
  const Span span_{.kind = SpanKind::kAttention,
                   .phase = Phase::kPrefill,
                   .layer = 95,
                   .micro_batch = 1234567890123,
                   .pass = -2,
                   .bytes = 3'600'000'000,
                   .flops = 7'000'000'000'000,
                   .tokens = 512,
                   .begin_ns = 1'000'000'000'000'000,
                   .end_ns = 1'000'000'000'000'999};
  std::vector<std::byte> bytes_ = encode_spans({span_, Span{}});
};

TEST_F(SpanCodec, RoundTripsEveryField) {
  const std::vector<Span> spans = decode_spans(bytes_);
  ASSERT_EQ(spans.size(), 2u);
  const Span& s = spans[0];
  EXPECT_EQ(s.kind, span_.kind);
  EXPECT_EQ(s.phase, span_.phase);
  EXPECT_EQ(s.layer, span_.layer);
  EXPECT_EQ(s.micro_batch, span_.micro_batch);
  EXPECT_EQ(s.pass, span_.pass);
  EXPECT_EQ(s.bytes, span_.bytes);
  EXPECT_EQ(s.flops, span_.flops);
  EXPECT_EQ(s.tokens, span_.tokens);
  EXPECT_EQ(s.begin_ns, span_.begin_ns);
  EXPECT_EQ(s.end_ns, span_.end_ns);
  EXPECT_EQ(spans[1].layer, -1);
  EXPECT_EQ(encode_spans(spans), bytes_);
  EXPECT_TRUE(decode_spans(encode_spans({})).empty());
}

TEST_F(SpanCodec, TheBytesAreTheDocumentedOnes) {
  ASSERT_EQ(bytes_.size(), 16u + 2 * 64);
  EXPECT_EQ(std::memcmp(bytes_.data(), "SPAN\x01\x00\x40\x00\x02\x00\x00\x00\x00\x00\x00\x00", 16),
            0);
  EXPECT_EQ(bytes_[kFirst], std::byte{4});       // kAttention
  EXPECT_EQ(bytes_[kFirst + 1], std::byte{1});   // kPrefill
  EXPECT_EQ(bytes_[kFirst + 4], std::byte{95});  // layer, low byte
}

TEST_F(SpanCodec, EveryTruncationIsRefused) {
  const std::vector<std::byte> whole = bytes_;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    bytes_.assign(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));
    expect_refused("truncated");
  }
  bytes_ = whole;
  bytes_.push_back(std::byte{0});
  expect_refused("one byte too many");
}

TEST_F(SpanCodec, HostileHeadersAllocateNothing) {
  put<std::uint64_t>(8, std::numeric_limits<std::uint64_t>::max());
  expect_refused("enormous count");
  put<std::uint64_t>(8, (std::uint64_t{1} << 58) + 2);  // · 64 wraps around to the right length
  expect_refused("count that overflows");
  put<std::uint64_t>(8, 2);
  put<std::uint16_t>(4, 2);
  expect_refused("newer version");
  put<std::uint16_t>(4, 1);
  put<std::uint16_t>(6, 0);
  expect_refused("records of no bytes");
  put<std::uint16_t>(6, 64);
  EXPECT_NO_THROW(decode_spans(bytes_));
  put<char>(0, 'X');
  expect_refused("magic");
}

TEST_F(SpanCodec, HostileRecordsAreRefused) {
  const std::vector<std::byte> whole = bytes_;
  constexpr std::int64_t kMin = std::numeric_limits<std::int64_t>::min();
  const auto refused = [&](std::size_t offset, auto value, const char* why) {
    bytes_ = whole;
    put(kFirst + offset, value);
    expect_refused(why);
  };
  refused(0, std::uint8_t{11}, "unknown kind");
  refused(1, std::uint8_t{3}, "unknown phase");
  refused(2, std::uint16_t{1}, "reserved bits");
  refused(4, std::int32_t{-2}, "layer");
  refused(8, std::int64_t{-2}, "micro-batch");
  refused(24, kMin, "bytes");
  refused(32, std::numeric_limits<std::int64_t>::max(), "flops");
  refused(40, std::int64_t{-1}, "tokens");
  refused(48, kMin, "begin");
  refused(56, std::int64_t{0}, "end before begin");
  refused(56, std::numeric_limits<std::int64_t>::max(), "end");
}

}  // namespace
}  // namespace stagecoach
