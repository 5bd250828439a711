#include <gtest/gtest.h>

#include "base/machine_limits.h"
#include "timeline/report.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kMs = 1'000'000;

// Builds the spans of a rank in milliseconds.
class RankBuilder {
 public:
  RankBuilder(int rank, std::string host) {
    timeline_ = {.rank = rank, .host = std::move(host), .clock = {}, .spans = {}};
  }

  RankBuilder& at(Phase phase, std::int64_t pass, std::int64_t micro_batch = 0) {
    phase_ = phase, pass_ = pass, micro_batch_ = micro_batch;
    return *this;
  }
  RankBuilder& add(SpanKind kind, std::int32_t layer, std::int64_t begin_ms, std::int64_t end_ms,
                   std::int64_t bytes = 0, std::int64_t flops = 0) {
    timeline_.spans.push_back({.kind = kind,
                               .phase = phase_,
                               .layer = layer,
                               .micro_batch = micro_batch_,
                               .pass = pass_,
                               .bytes = bytes,
                               .flops = flops,
                               .tokens = 8,
                               .begin_ns = begin_ms * kMs,
                               .end_ns = end_ms * kMs});
    return *this;
  }
  const RankTimeline& get() const { return timeline_; }

 private:
  RankTimeline timeline_;
  Phase phase_ = Phase::kPrefill;
  std::int64_t pass_ = 0, micro_batch_ = 0;
};

using enum SpanKind;

TEST(LayerRows, OnePassOfOneLayer) {
  RankBuilder rank(0, "pc-a");
  rank.at(Phase::kPrefill, 0)
      .add(kWeightWait, 4, 100, 103)
      .add(kAttention, 4, 103, 113, 2'000'000, 50'000'000)
      .add(kWeightWait, 4, 114, 116)
      .add(kMlp, 4, 116, 136, 4'000'000, 100'000'000)
      .add(kSend, -1, 136, 140, 999)
      .add(kHead, -1, 140, 150, 999);
  const std::vector<LayerRow> rows = layer_rows({rank.get()});
  ASSERT_EQ(rows.size(), 1u);
  const LayerRow& row = rows[0];
  EXPECT_EQ(row.layer, 4);
  EXPECT_EQ(row.rank, 0);
  EXPECT_EQ(row.host, "pc-a");
  EXPECT_EQ(row.phase, Phase::kPrefill);
  EXPECT_DOUBLE_EQ(row.ms, 36);  // to the end of the MLP, the gap at 113 included
  EXPECT_DOUBLE_EQ(row.wait_ms, 5);
  EXPECT_DOUBLE_EQ(row.attention_ms, 10);
  EXPECT_DOUBLE_EQ(row.mlp_ms, 20);
  EXPECT_DOUBLE_EQ(row.compute_ms, 30);
  EXPECT_DOUBLE_EQ(row.read_ms, 0);
  EXPECT_EQ(row.bytes, 6'000'000);
  EXPECT_EQ(row.flops, 150'000'000);
  EXPECT_EQ(row.tokens, 8);
  EXPECT_EQ(row.passes, 1);
  EXPECT_DOUBLE_EQ(row.gb_per_s(), 0.2);
  EXPECT_DOUBLE_EQ(row.gflop_per_s(), 5);
  EXPECT_FALSE(row.share_of_limit);
}

TEST(LayerRows, ShareIsOfTheNearerLimit) {
  RankBuilder rank(0, "a");
  rank.at(Phase::kPrefill, 0).add(kAttention, 0, 0, 10, 4'000'000, 90'000'000);
  rank.at(Phase::kDecode, 0).add(kAttention, 0, 20, 30, 9'000'000, 10'000'000);
  rank.at(Phase::kDecode, 0).add(kWeightWait, 1, 30, 40).add(kMlp, 1, 40, 40, 5, 5);
  RankTimeline timeline = rank.get();
  const MachineLimits machine{.cpu = "",
                              .isa = "",
                              .threads = 4,
                              .probed_at = "",
                              .memory = {0.5e9, 1e9},
                              .f32 = {{5e9, 12e9}, ""},
                              .bf16 = {},
                              .int8 = {},
                              .disks = {},
                              .links = {},
                              .devices = {}};
  timeline.usage.threads = 2;  // 10⁹ bytes, 10¹⁰ operations per second
  add_limits(timeline.usage, machine, "/");
  std::vector<LayerRow> rows = layer_rows({timeline});
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_DOUBLE_EQ(rows[0].share_of_limit.value(), 0.9);  // arithmetic; memory has 0.4
  EXPECT_DOUBLE_EQ(rows[1].share_of_limit.value(), 0.9);  // memory; arithmetic has 0.1
  EXPECT_FALSE(rows[2].share_of_limit);                   // took no time that a clock shows
  timeline.usage.threads = 1;
  add_limits(timeline.usage, machine, "/");
  EXPECT_DOUBLE_EQ(layer_rows({timeline})[1].share_of_limit.value(), 1.8);  // not cut at 1
  timeline.usage.threads = 4;
  add_limits(timeline.usage, machine, "/");
  EXPECT_DOUBLE_EQ(layer_rows({timeline})[0].share_of_limit.value(), 0.75);  // all share 12
  RankTimeline unknown = rank.get();
  add_limits(unknown.usage, std::nullopt, "/");
  EXPECT_FALSE(layer_rows({unknown})[0].share_of_limit);
}

TEST(LayerRows, ShareOfARankOnAGpuIsThatOfItsGpu) {
  MachineLimits machine;
  machine.memory = {1e9, 1e9};
  machine.f32 = machine.bf16 = machine.int8 = {{1e9, 1e9}, ""};
  machine.devices = {{.label = "GPU 0 (A)", .memory = 5e9, .f32 = 1e12, .f16 = 8e12, .bf16 = 7e12},
                     {.label = "GPU 1 (B)", .memory = 3e9, .f32 = 1e12, .f16 = 4e12, .bf16 = {}}};
  RankUsage usage;
  usage.threads = 1;
  usage.device = "GPU 1 (B)";
  const auto operations = [&](const char* inputs) {
    usage.inputs = inputs;
    add_limits(usage, machine, "/");
    return usage.flops_per_s;
  };
  EXPECT_EQ(operations("f32"), 1e12);
  EXPECT_EQ(operations("f16"), 4e12);
  EXPECT_EQ(operations("int8"), 4e12);
  EXPECT_EQ(usage.memory_bytes_per_s, 3e9);
  usage.device = "GPU 0 (A)";
  EXPECT_EQ(operations("bf16"), 7e12);
  EXPECT_EQ(usage.memory_bytes_per_s, 5e9);
  RankUsage unknown;
  unknown.device = "GPU 2 (C)";
  add_limits(unknown, machine, "/");
  EXPECT_EQ(unknown.memory_bytes_per_s, 0);
  EXPECT_EQ(unknown.flops_per_s, 0);
}

TEST(LayerRows, MicroBatchesOfAPassAddUpWithoutTheTimeBetween) {
  RankBuilder rank(0, "a");
  rank.at(Phase::kPrefill, 0, 0).add(kAttention, 0, 0, 10, 5).add(kMlp, 0, 10, 30, 7);
  rank.at(Phase::kPrefill, 0, 1).add(kAttention, 0, 500, 511, 5).add(kMlp, 0, 511, 532, 7);
  const LayerRow row = layer_rows({rank.get()}).at(0);
  EXPECT_DOUBLE_EQ(row.ms, 62);
  EXPECT_DOUBLE_EQ(row.compute_ms, 62);
  EXPECT_EQ(row.bytes, 24);
  EXPECT_EQ(row.tokens, 16);
  EXPECT_EQ(row.passes, 1);
}

TEST(LayerRows, MediansOverPassesLeaveOutWarmUp) {
  RankBuilder rank(0, "a");
  std::int64_t clock = 0;
  const std::int64_t durations[] = {900, 3, 1, 700, 2};  // pass -1 first
  for (std::int64_t pass = -1; pass < 4; ++pass) {
    const std::int64_t ms = durations[pass + 1];
    rank.at(Phase::kDecode, pass)
        .add(kAttention, 0, clock, clock + ms, 10, pass < 0 ? 0 : pass * 2);
    clock += ms;
  }
  const LayerRow row = layer_rows({rank.get()}).at(0);
  EXPECT_EQ(row.passes, 4);
  EXPECT_DOUBLE_EQ(row.ms, 2.5);  // of 1, 2, 3, 700
  EXPECT_EQ(row.flops, 3);        // of 0, 2, 4, 6
  EXPECT_EQ(row.bytes, 10);
}

TEST(LayerRows, SortsByLayerThenRankThenPhase) {
  RankBuilder a(0, "a"), b(1, "b");
  b.at(Phase::kDecode, 0).add(kAttention, 1, 0, 1).add(kAttention, 0, 1, 2);
  b.at(Phase::kPrefill, 0).add(kAttention, 1, 2, 3);
  a.at(Phase::kPrefill, 0).add(kAttention, 2, 0, 1).add(kAttention, 1, 1, 2);
  std::vector<std::string> order;
  for (const LayerRow& row : layer_rows({b.get(), a.get()}))
    order.push_back(std::to_string(row.layer) + row.host + std::string(phase_name(row.phase)));
  EXPECT_EQ(order, (std::vector<std::string>{"0bdecode", "1aprefill", "1bprefill", "1bdecode",
                                             "2aprefill"}));
}

TEST(LayerRows, ReadsBelongToThePassThatUsedThem) {
  RankBuilder rank(0, "a");
  // Reading ahead: the second pass's weights come while the first computes.
  rank.at(Phase::kNone, 0).add(kRead, 0, 0, 4).add(kVerify, 0, 4, 5);
  rank.at(Phase::kPrefill, 0).add(kAttention, 0, 5, 10);
  rank.at(Phase::kNone, 0).add(kRead, 0, 6, 8).add(kRead, 1, 0, 50);
  rank.at(Phase::kDecode, 0).add(kAttention, 0, 20, 30);
  rank.at(Phase::kDecode, 0).add(kRead, 0, 21, 22);  // said so itself
  const std::vector<LayerRow> rows = layer_rows({rank.get()});
  ASSERT_EQ(rows.size(), 2u);  // layer 1 was read but never run
  EXPECT_DOUBLE_EQ(rows[0].read_ms, 5);
  EXPECT_DOUBLE_EQ(rows[1].read_ms, 3);
}

// A disk that reads parts in order into a ring of a few slots, each as soon as its slot is free.
TEST(LayerRows, ReadsAheadAcrossPassesBelongToTheNextPass) {
  RankBuilder rank(0, "a");
  // One streamed layer, two parts a pass. Pass p computes at 100·p: attention 10-20, MLP 20-40.
  for (std::int64_t pass = -1; pass < 3; ++pass) {
    const std::int64_t t = 200 + 100 * pass;
    rank.at(Phase::kDecode, pass)
        .add(kWeightWait, 7, t + 5, t + 10)
        .add(kAttention, 7, t + 10, t + 20)
        .add(kMlp, 7, t + 20, t + 40);
    if (pass == 2) continue;
    // For the next pass, while this one's MLP still computes: pass p's read takes 20 + p ms.
    rank.at(Phase::kNone, 0).add(kRead, 7, t + 20, t + 32 + pass).add(kRead, 7, t + 40, t + 50);
  }
  rank.at(Phase::kNone, 0).add(kRead, 7, 0, 90);  // of the warm-up
  const std::vector<LayerRow> rows = layer_rows({rank.get()});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].passes, 3);
  EXPECT_DOUBLE_EQ(rows[0].read_ms, 22);  // of 21, 22, 23
  EXPECT_DOUBLE_EQ(rows[0].wait_ms, 5);
}

TEST(LayerRows, AReadForTheNextPassThatEndsBetweenMicroBatchesIsNotThisPasss) {
  RankBuilder rank(0, "a");
  // Two micro-batches share the layer's lease; its memory is free only after the second.
  rank.at(Phase::kNone, 0).add(kRead, 3, 0, 30);
  for (std::int64_t pass = 0; pass < 2; ++pass)
    for (std::int64_t batch = 0; batch < 2; ++batch) {
      const std::int64_t t = 30 + 100 * pass + 20 * batch;
      rank.at(Phase::kPrefill, pass, batch)
          .add(kAttention, 3, t, t + 10)
          .add(kMlp, 3, t + 10, t + 20);
    }
  rank.at(Phase::kNone, 0).add(kRead, 3, 60, 110);
  const LayerRow row = layer_rows({rank.get()}).at(0);
  EXPECT_EQ(row.passes, 2);
  EXPECT_DOUBLE_EQ(row.read_ms, 40);  // of 30 and 50
}

// In memory, layers that share a slab share what was read for the first of them; streamed, each is
// read for itself.
TEST(LayerRows, LayersThatShareASlab) {
  RankBuilder resident(0, "a"), streamed(1, "b");
  resident.at(Phase::kNone, 0).add(kRead, 0, 0, 10);
  for (std::int32_t layer = 0; layer < 3; ++layer) {
    const std::int64_t t = 100 + 20 * layer;
    resident.at(Phase::kPrefill, 0).add(kMlp, layer, t, t + 5);
    streamed.at(Phase::kNone, 0).add(kRead, 4 + layer, t - 20, t);
    streamed.at(Phase::kPrefill, 0).add(kMlp, 4 + layer, t, t + 5);
  }
  std::vector<double> reads;
  for (const LayerRow& row : layer_rows({resident.get(), streamed.get()}))
    reads.push_back(row.read_ms);
  EXPECT_EQ(reads, (std::vector<double>{10, 0, 0, 20, 20, 20}));
}

TEST(LayerRows, ParallelReadsCountOnce) {
  RankBuilder rank(0, "a");
  rank.at(Phase::kPrefill, 0)
      .add(kRead, 0, 0, 10)
      .add(kRead, 0, 2, 5)
      .add(kRead, 0, 8, 12)
      .add(kRead, 0, 20, 21)
      .add(kMlp, 0, 30, 31);
  EXPECT_DOUBLE_EQ(layer_rows({rank.get()}).at(0).read_ms, 13);
}

TEST(LayerRows, CopiesToAGpuAreNoReads) {
  RankBuilder rank(0, "a");
  rank.at(Phase::kNone, 0).add(kRead, 0, 0, 4).add(kCopy, 0, 4, 6).add(kCopy, 0, 5, 7);
  rank.at(Phase::kPrefill, 0).add(kMlp, 0, 10, 20);
  const LayerRow row = layer_rows({rank.get()}).at(0);
  EXPECT_DOUBLE_EQ(row.read_ms, 4);
  EXPECT_DOUBLE_EQ(row.copy_ms, 3);
}

TEST(LayerRows, NothingMeasuredGivesNoRows) {
  EXPECT_TRUE(layer_rows({}).empty());
  RankBuilder rank(0, "a");
  rank.at(Phase::kPrefill, 0).add(kWeightWait, 0, 0, 5);  // interrupted before it computed
  rank.at(Phase::kNone, 0).add(kAttention, 1, 0, 5);      // outside any phase
  rank.at(Phase::kPrefill, -1).add(kAttention, 2, 0, 5);  // warm-up
  EXPECT_TRUE(layer_rows({rank.get()}).empty());
}

TEST(LayerRows, InstantSpansHaveNoRate) {
  RankBuilder rank(0, "a");
  rank.at(Phase::kPrefill, 0).add(kAttention, 0, 5, 5, 100, 100);
  const LayerRow row = layer_rows({rank.get()}).at(0);
  EXPECT_EQ(row.gb_per_s(), 0);
  EXPECT_EQ(row.gflop_per_s(), 0);
}

TEST(MedianPass, SumsRanksAndMicroBatchesThenTakesTheMedian) {
  RankBuilder a(0, "a"), b(1, "b");
  a.at(Phase::kDecode, -1).add(kHead, -1, 0, 100);
  a.at(Phase::kDecode, 0, 0).add(kHead, -1, 0, 1);
  a.at(Phase::kDecode, 0, 1).add(kHead, -1, 1, 3);
  a.at(Phase::kDecode, 1).add(kHead, -1, 3, 8);
  a.at(Phase::kPrefill, 0).add(kHead, -1, 3, 80);
  b.at(Phase::kDecode, 1).add(kHead, -1, 0, 2);
  EXPECT_DOUBLE_EQ(median_pass_ms({a.get(), b.get()}, kHead, Phase::kDecode), 5);  // of 3 and 7
  EXPECT_EQ(median_pass_ms({a.get()}, kEmbedding, Phase::kDecode), 0);
}

TEST(LayerRows, NameTheDeviceThatComputed) {
  RankTimeline timeline;
  for (const std::int32_t layer : {3, 4})
    timeline.spans.push_back({.kind = SpanKind::kMlp,
                              .phase = Phase::kDecode,
                              .layer = layer,
                              .tokens = 1,
                              .begin_ns = 10 * layer,
                              .end_ns = 10 * layer + 5});
  timeline.usage.device = "cuda";
  timeline.usage.cpu_layers = {4};
  const std::vector<LayerRow> rows = layer_rows({timeline});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].device, "cuda");
  EXPECT_EQ(rows[1].device, "cpu");
}

}  // namespace
}  // namespace stagecoach
