#include "timeline/critical_path.h"

#include <gtest/gtest.h>

#include <numeric>

#include "spans.h"
#include "timeline/timeline.h"

namespace stagecoach {
namespace {

using enum SpanKind;

std::int64_t share_us(const CriticalPath& path, int rank, Activity activity) {
  for (const PathShare& share : path.shares)
    if (share.rank == rank && share.activity == activity) return share.ns / 1000;
  return 0;
}

// Rank 0 computes for 100 µs and sends; the message takes 50; rank 1 computes for 300. Meanwhile
// rank 0 works on something that nobody waits for.
std::vector<RankTimeline> two_ranks(std::int64_t rank1_clock_us = 0) {
  const std::int64_t c = -rank1_clock_us;
  return {RankBuilder(0, "a")
              .label(Phase::kPrefill, 0, 7)
              .add(kAttention, 1000, 1060, 0)
              .add(kMlp, 1060, 1095, 0)
              .add(kSend, 1095, 1100)
              .label(Phase::kPrefill, 0, 8)
              .add(kAttention, 1100, 1300, 0),
          RankBuilder(1, "b")
              .clock_offset_us(rank1_clock_us)
              .label(Phase::kPrefill, 0, 7)
              .add(kIdle, c + 900, c + 1150)
              .add(kAttention, c + 1150, c + 1350, 1)
              .add(kMlp, c + 1350, c + 1440, 1)
              .add(kHead, c + 1445, c + 1450)};
}

TEST(CriticalPath, GoesThroughTheMessageToItsSender) {
  for (const std::int64_t clock : {std::int64_t{0}, std::int64_t{-5'000'000}}) {
    const std::vector<CriticalPath> paths = critical_paths(two_ranks(clock));
    ASSERT_EQ(paths.size(), 1u);
    const CriticalPath& path = paths[0];
    EXPECT_EQ(path.phase, Phase::kPrefill);
    EXPECT_EQ(path.total_ns, 450'000);
    EXPECT_EQ(share_us(path, 0, Activity::kAttention), 60);  // not the other 200
    EXPECT_EQ(share_us(path, 0, Activity::kMlp), 35);
    EXPECT_EQ(share_us(path, 0, Activity::kSend), 5);
    EXPECT_EQ(share_us(path, 0, Activity::kWait), 50);
    EXPECT_EQ(share_us(path, 1, Activity::kAttention), 200);
    EXPECT_EQ(share_us(path, 1, Activity::kMlp), 90);
    EXPECT_EQ(share_us(path, 1, Activity::kOther), 5);
    EXPECT_EQ(path.shares.front().rank, 1);
    EXPECT_EQ(path.shares.front().activity, Activity::kAttention);
  }
}

TEST(CriticalPath, InWords) {
  const std::vector<CriticalPath> paths = critical_paths(two_ranks());
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(describe(paths[0]),
            "rank 1's attention: 44 % of the path; rank 1's MLP: 20 %; rank 0's attention: 13 %; "
            "11 % waiting for rank 0's messages; rank 0's MLP: 8 %; 3 % elsewhere");
}

TEST(CriticalPath, AMessageThatWasThereAlreadyIsNotWaitedFor) {
  const std::vector<RankTimeline> ranks{
      RankBuilder(0, "a").label(Phase::kDecode, 0, 1).add(kMlp, 0, 10, 0).add(kSend, 10, 20),
      RankBuilder(1, "b")
          .label(Phase::kDecode, 0, 0)
          .add(kMlp, 0, 500, 1)
          .label(Phase::kDecode, 0, 1)
          .add(kIdle, 500, 503)
          .add(kMlp, 503, 600, 1)};
  const std::vector<CriticalPath> paths = critical_paths(ranks);
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(paths[0].total_ns, 600'000);
  EXPECT_EQ(share_us(paths[0], 1, Activity::kMlp), 597);
  EXPECT_EQ(share_us(paths[0], 0, Activity::kMlp), 0);
}

TEST(CriticalPath, LeavesWarmUpOutAndTellsPhasesApart) {
  const std::vector<RankTimeline> ranks{RankBuilder(0, "a")
                                            .add(kRead, 0, 900)
                                            .label(Phase::kPrefill, -1, 0)
                                            .add(kMlp, 1000, 2000, 0)
                                            .label(Phase::kPrefill, 0, 1)
                                            .add(kMlp, 2000, 2100, 0)
                                            .label(Phase::kNone, -2, 0)
                                            .add(kMlp, 2100, 2700, 0)
                                            .label(Phase::kDecode, 0, 2)
                                            .add(kWeightWait, 2700, 2710, 0)
                                            .add(kMlp, 2710, 2750, 0)};
  const std::vector<CriticalPath> paths = critical_paths(ranks);
  ASSERT_EQ(paths.size(), 2u);
  EXPECT_EQ(paths[0].phase, Phase::kPrefill);
  EXPECT_EQ(paths[0].total_ns, 100'000);
  EXPECT_EQ(paths[1].phase, Phase::kDecode);
  EXPECT_EQ(share_us(paths[1], 0, Activity::kWeightWait), 10);
  EXPECT_EQ(paths[1].total_ns, 50'000);
}

TEST(CriticalPath, OfNothingAndOfNonsenseEnds) {
  EXPECT_TRUE(critical_paths({}).empty());
  EXPECT_TRUE(critical_paths({RankBuilder(0, "a")}).empty());
  // Two ranks that seem to wait for each other's later messages: clocks that were never compared.
  std::vector<RankTimeline> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    RankBuilder builder(rank, "x");
    for (int i = 0; i < 50; ++i)
      builder.label(Phase::kDecode, i, i % 3)
          .add(kIdle, 100 * i, 100 * i + 90)
          .add(kSend, 100 * i + 10, 100 * i + 100);
    ranks.push_back(builder);
  }
  const std::vector<CriticalPath> paths = critical_paths(ranks);
  ASSERT_EQ(paths.size(), 1u);
  std::int64_t sum = 0;
  for (const PathShare& share : paths[0].shares) sum += share.ns;
  EXPECT_EQ(sum, paths[0].total_ns);
  EXPECT_LE(sum, 5'000'000);
}

TEST(RankShares, AddUpToTheMeasuredTime) {
  const std::vector<RankShare> shares = rank_shares(two_ranks());
  ASSERT_EQ(shares.size(), 2u);
  for (const RankShare& share : shares) {
    EXPECT_EQ(share.total_ns, 450'000);
    EXPECT_EQ(std::accumulate(std::begin(share.by_activity), std::end(share.by_activity),
                              std::int64_t{0}),
              share.total_ns);
  }
  EXPECT_EQ(shares[0].by_activity[static_cast<int>(Activity::kAttention)], 260'000);
  EXPECT_EQ(shares[0].by_activity[static_cast<int>(Activity::kOther)], 150'000);
  // The wait began before anything was measured: only what lies within counts.
  EXPECT_EQ(shares[1].by_activity[static_cast<int>(Activity::kWait)], 150'000);
  ASSERT_EQ(shares[1].waited_for.size(), 1u);
  EXPECT_EQ(shares[1].waited_for[0].rank, 0);
  EXPECT_EQ(shares[1].waited_for[0].ns, 150'000);
  EXPECT_TRUE(rank_shares({}).empty());
}

}  // namespace
}  // namespace stagecoach
