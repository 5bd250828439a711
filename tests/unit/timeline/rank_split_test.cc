#include "timeline/rank_split.h"

#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "spans.h"
#include "timeline/stretches.h"

namespace stagecoach {
namespace {

using enum SpanKind;

// Two decode steps of 400 µs on two ranks, 100 µs apart; rank 1's disk reads beside both.
std::vector<RankTimeline> two_ranks() {
  RankBuilder zero(0, "a"), one(1, "b");
  one.label(Phase::kNone, 0, -1)
      .add(kRead, 500, 1100, 1, 600)  // 100 of it before the first step
      .add(kRead, 1050, 1300, 1, 300)
      .add(kRead, 1500, 1700, 1, 200);
  for (int pass = 0; pass < 2; ++pass) {
    const std::int64_t t = 1000 + 500 * pass;
    zero.label(Phase::kDecode, pass, pass)
        .add(kEmbedding, t, t + 20)
        .add(kWeightWait, t + 20, t + 30, 0)
        .add(kAttention, t + 30, t + 100, 0)
        .add(kSend, t + 100, t + 104);
    one.label(Phase::kDecode, pass, pass)
        .add(kIdle, t - 50, t + 150)
        .add(kAttention, t + 150, t + 250, 1)
        .add(kMlp, t + 250, t + 350, 1)
        .add(kHead, t + 350, t + 400);
  }
  return {zero, one};
}

double sum_ms(const RankSplit& split) {
  return std::accumulate(std::begin(split.by_activity_ms), std::end(split.by_activity_ms), 0.0);
}

TEST(RankSplit, AddsUpToTheTimeOfAPassWithWhatLiesBetween) {
  const std::vector<RankSplit> splits = rank_splits(two_ranks());
  ASSERT_EQ(splits.size(), 2u);
  for (const RankSplit& split : splits) {
    EXPECT_EQ(split.phase, Phase::kDecode);
    EXPECT_DOUBLE_EQ(split.wall_ms, 0.45);  // 900 µs, two passes
    EXPECT_NEAR(sum_ms(split), split.wall_ms, 1e-12);
  }
  EXPECT_DOUBLE_EQ(splits[0].ms(Activity::kEmbedding), 0.02);
  EXPECT_DOUBLE_EQ(splits[0].ms(Activity::kWeightWait), 0.01);
  EXPECT_DOUBLE_EQ(splits[0].ms(Activity::kAttention), 0.07);
  EXPECT_DOUBLE_EQ(splits[0].ms(Activity::kSend), 0.004);
  EXPECT_FALSE(splits[0].mostly_for);
  EXPECT_DOUBLE_EQ(splits[1].ms(Activity::kMlp), 0.1);
  EXPECT_DOUBLE_EQ(splits[1].ms(Activity::kHead), 0.05);
  EXPECT_DOUBLE_EQ(splits[1].ms(Activity::kWait), 0.175);  // the first began before the first step
  EXPECT_EQ(splits[1].mostly_for, 0);
  EXPECT_TRUE(rank_splits({}).empty());
}

TEST(RankSplit, TheDiskBesideIt) {
  std::vector<RankTimeline> ranks = two_ranks();
  ranks[1].usage.disk_bytes_per_s = 4e6;
  const std::vector<RankSplit> splits = rank_splits(ranks);
  ASSERT_EQ(splits.size(), 2u);
  EXPECT_EQ(splits[0].read_bytes, 0);
  EXPECT_EQ(splits[0].disk_gb_per_s(), 0);
  EXPECT_FALSE(splits[0].share_of_disk);
  EXPECT_NEAR(splits[0].busy, 180.0 / 900, 1e-12);
  const RankSplit& disk = splits[1];
  EXPECT_EQ(disk.read_bytes, (100 + 300 + 200) / 2);  // of the first read what lies inside
  EXPECT_DOUBLE_EQ(disk.disk_ms, (300 + 200) / 2e3);  // overlap counts once
  EXPECT_DOUBLE_EQ(disk.disk_busy(), 500.0 / 900);
  EXPECT_DOUBLE_EQ(disk.disk_gb_per_s(), 300 / 0.25 * 1e-6);
  EXPECT_DOUBLE_EQ(disk.share_of_disk.value(), 0.3);
  // Computes 1150-1400 and 1650-1900, reads 1000-1300 and 1500-1700.
  EXPECT_NEAR(disk.busy, 800.0 / 900, 1e-12);
}

TEST(RankSplit, TheBusBesideIt) {
  std::vector<RankTimeline> ranks = two_ranks();
  EXPECT_EQ(format_rank_table(rank_splits(ranks)).find("bus of"), std::string::npos);
  // Half a copy lies before the first measured pass.
  ranks[0].spans.push_back(
      {.kind = SpanKind::kCopy, .bytes = 4000, .begin_ns = 900'000, .end_ns = 1'100'000});
  ranks[0].usage.bus_bytes_per_s = 40e6;
  const std::vector<RankSplit> splits = rank_splits(ranks);
  EXPECT_EQ(splits[0].copied_bytes, 2000 / 2);  // of two passes
  EXPECT_DOUBLE_EQ(splits[0].bus_ms, 0.05);
  EXPECT_DOUBLE_EQ(splits[0].share_of_bus.value(), 0.5);
  EXPECT_EQ(splits[0].read_bytes, 0);
  EXPECT_EQ(splits[1].bus_ms, 0);
  const std::string table = format_rank_table(splits);
  EXPECT_NE(table.find("bus of rank 0 in decode: 1.00 kB a pass to its GPU, 0.02 GB/s (50 % of its "
                       "limit), busy 11 % of the time\n"),
            std::string::npos)
      << table;
}

TEST(RankSplit, PhasesDoNotMix) {
  const std::vector<RankTimeline> ranks{RankBuilder(0, "a")
                                            .label(Phase::kPrefill, -1, 0)
                                            .add(kMlp, 0, 1000, 0)
                                            .label(Phase::kPrefill, 0, 1)
                                            .add(kMlp, 1000, 1100, 0)
                                            .label(Phase::kNone, -2, 2)
                                            .add(kMlp, 1100, 1500, 0)
                                            .label(Phase::kDecode, 0, 3)
                                            .add(kMlp, 1500, 1600, 0)
                                            .label(Phase::kPrefill, 1, 4)
                                            .add(kMlp, 1600, 1620, 0)
                                            .label(Phase::kDecode, 0, 5)
                                            .add(kMlp, 1620, 1700, 0)};
  const std::vector<RankSplit> splits = rank_splits(ranks);
  ASSERT_EQ(splits.size(), 2u);
  EXPECT_EQ(splits[0].phase, Phase::kPrefill);
  EXPECT_DOUBLE_EQ(splits[0].wall_ms, 0.06);  // 100 and 20 µs
  EXPECT_DOUBLE_EQ(splits[0].ms(Activity::kMlp), 0.06);
  EXPECT_DOUBLE_EQ(splits[1].wall_ms, 0.2);
  EXPECT_DOUBLE_EQ(splits[1].ms(Activity::kMlp), 0.18);
  EXPECT_DOUBLE_EQ(splits[1].ms(Activity::kOther), 0.02);  // the prefill meanwhile
  // Moments that both claim are the first one's, so that a path counts none twice.
  const std::vector<Stretch> apart = without_overlap(measured_stretches(ranks));
  ASSERT_EQ(apart.size(), 2u);
  EXPECT_EQ(apart[1].phase, Phase::kDecode);
  EXPECT_EQ(apart[1].range.end_ns, 1'700'000);
}

TEST(RankTable, SaysWhatIsNotKnownAndLeavesTheIdlestOut) {
  std::vector<RankTimeline> ranks = two_ranks();
  const std::string table = format_rank_table(rank_splits(ranks));
  EXPECT_NE(table.find(" 56 %"), std::string::npos) << table;  // the disk
  EXPECT_NE(table.find(" - "), std::string::npos) << table;
  std::vector<RankSplit> many;
  for (int rank = 0; rank < 50; ++rank) {
    RankSplit& split = many.emplace_back();
    split.rank = rank;
    split.phase = Phase::kPrefill;
    split.wall_ms = 123'456;
    split.busy = rank == 33 ? 1.0 : 0.01 * rank;
    split.disk_ms = 1;
    split.read_bytes = 999'900'000;
  }
  const std::string short_table = format_rank_table(many);
  EXPECT_NE(short_table.find("\n  33 prefill"), std::string::npos) << short_table;
  EXPECT_NE(short_table.find("16 of 50 ranks"), std::string::npos);
  EXPECT_EQ(short_table.find("\n   7 "), std::string::npos);
  for (std::size_t begin = 0, end; (end = short_table.find('\n', begin)) != std::string::npos;
       begin = end + 1)
    EXPECT_LE(end - begin, 120u);
  EXPECT_EQ(format_rank_table({}), "");
}

TEST(RankTable, NamesTheCriticalPathOfEachPhase) {
  const std::string text = format_critical_paths(critical_paths(two_ranks()));
  EXPECT_EQ(text.rfind("critical path of decode: rank 0's ", 0), 0u) << text;
  EXPECT_NE(text.find(" % of the step"), std::string::npos) << text;
}

}  // namespace
}  // namespace stagecoach
