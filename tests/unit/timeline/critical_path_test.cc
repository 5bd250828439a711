#include "timeline/critical_path.h"

#include <gtest/gtest.h>

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
            "rank 1's attention: 44 % of the pass; rank 1's MLP: 20 %; rank 0's attention: 13 %; "
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
  EXPECT_EQ(share_us(paths[1], 0, Activity::kRead), 10);
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

TEST(CriticalPath, AWaitForWeightsIsTheDisk) {
  // The disk had rested until the MLP before gave its memory back.
  const std::vector<CriticalPath> paths = critical_paths({RankBuilder(2, "a")
                                                              .label(Phase::kDecode, 0, 0)
                                                              .add(kMlp, 0, 290, 0)
                                                              .add(kWeightWait, 290, 1000, 1)
                                                              .label(Phase::kNone, 0, -1)
                                                              .add(kRead, 290, 999, 1, 1000)
                                                              .label(Phase::kDecode, 0, 0)
                                                              .add(kAttention, 1000, 1000, 1)});
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(describe(paths[0]), "rank 2's disk: 71 % of the step; rank 2's MLP: 29 %");
  EXPECT_EQ(paths[0].total_ns, 1'000'000);
}

TEST(CriticalPath, AWaitForCopiesIsTheBus) {
  const auto told = [](const RankBuilder& rank) {
    const std::vector<CriticalPath> paths = critical_paths({rank});
    return paths.size() == 1 ? describe(paths[0]) : "";
  };
  // From the host's memory, copy after copy, while the disk reads what comes later.
  EXPECT_EQ(told(RankBuilder(1, "a")
                     .label(Phase::kDecode, 0, 0)
                     .add(kMlp, 0, 100, 0)
                     .add(kWeightWait, 100, 1000, 2)
                     .label(Phase::kNone, 0, -1)
                     .add(kCopy, 100, 500, 1, 1000)
                     .add(kCopy, 500, 999, 2, 1000)
                     .add(kRead, 50, 995, 7, 1000)
                     .label(Phase::kDecode, 0, 0)
                     .add(kAttention, 1000, 1000, 2)),
            "rank 1's bus: 90 % of the step; rank 1's MLP: 10 %");
  // Through the host's memory, from disk.
  EXPECT_EQ(told(RankBuilder(1, "a")
                     .label(Phase::kDecode, 0, 0)
                     .add(kMlp, 0, 100, 0)
                     .add(kWeightWait, 100, 1000, 1)
                     .label(Phase::kNone, 0, -1)
                     .add(kRead, 100, 695, 1, 1000)
                     .add(kCopy, 700, 1000, 1, 1000)
                     .label(Phase::kDecode, 0, 0)
                     .add(kAttention, 1000, 1000, 1)),
            "rank 1's disk: 60 % of the step; rank 1's bus: 30 %; rank 1's MLP: 10 %");
}

TEST(CriticalPath, WithoutItsReadAWaitForWeightsStillIsTheDisk) {
  const std::vector<CriticalPath> paths = critical_paths({RankBuilder(0, "a")
                                                              .label(Phase::kPrefill, 0, 0)
                                                              .add(kMlp, 0, 250, 0)
                                                              .add(kWeightWait, 250, 1000, 1)
                                                              .add(kMlp, 1000, 1000, 1)});
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(describe(paths[0]), "rank 0's disk: 75 % of the pass; rank 0's MLP: 25 %");
}

// A ring of `ranks`, each of which computes for 20 µs and whose disk takes `disk_us` for what it
// needs in a step; one rank's takes longer. Every disk reads ahead without a rest.
std::vector<RankTimeline> streamed_ring(int ranks, int slow, std::int64_t slow_us,
                                        std::int64_t disk_us) {
  constexpr std::int64_t kCompute = 20, kHop = 2;
  constexpr int kPasses = 4;
  std::vector<RankBuilder> builders;
  for (int r = 0; r < ranks; ++r) builders.emplace_back(r, "pc");
  std::vector<std::int64_t> read_end(static_cast<std::size_t>(ranks), 1000);
  std::int64_t clock = 1000;
  std::vector<std::int64_t> free(static_cast<std::size_t>(ranks), 1000);
  for (int pass = 0; pass < kPasses; ++pass)
    for (int r = 0; r < ranks; ++r) {
      const auto i = static_cast<std::size_t>(r);
      RankBuilder& builder = builders[i];
      const std::int64_t begin = read_end[i];
      read_end[i] += r == slow ? slow_us : disk_us;
      builder.label(Phase::kNone, 0, -1).add(kRead, begin, read_end[i], r, 500);
      builder.label(Phase::kDecode, pass, pass);
      builder.add(kIdle, free[i], clock);
      std::int64_t now = clock;
      if (read_end[i] > now) {
        builder.add(kWeightWait, now, read_end[i], r);
        now = read_end[i];
      }
      builder.add(kMlp, now, now + kCompute, r).add(kSend, now + kCompute, now + kCompute + 1);
      free[i] = now + kCompute + 1;
      clock = free[i] + kHop;
    }
  return {builders.begin(), builders.end()};
}

TEST(CriticalPath, OfDisksThatReadAheadTheSlowestIsTheWholeStep) {
  for (int ranks = 1; ranks <= 4; ++ranks)
    for (int slow = 0; slow < ranks; ++slow) {
      const auto paths = critical_paths(streamed_ring(ranks, slow, 400, 150));
      ASSERT_EQ(paths.size(), 1u);
      const PathShare& first = paths[0].shares.front();
      EXPECT_EQ(first.rank, slow);
      EXPECT_EQ(first.activity, Activity::kRead);
      // All but what comes after its last part has arrived.
      EXPECT_GE(first.ns * 10, paths[0].total_ns * 8) << ranks << " ranks, " << describe(paths[0]);
      for (const PathShare& share : paths[0].shares)
        EXPECT_TRUE(share.activity != Activity::kRead || share.rank == slow) << describe(paths[0]);
    }
}

TEST(CriticalPath, DisksThatKeepUpAreNotOnIt) {
  // Memory comes back late, and the disks are done before anyone asks.
  for (int ranks = 2; ranks <= 4; ++ranks) {
    const auto paths = critical_paths(streamed_ring(ranks, 0, 21, 21));
    ASSERT_EQ(paths.size(), 1u);
    std::int64_t disk_ns = 0;
    for (const PathShare& share : paths[0].shares)
      if (share.activity == Activity::kRead) disk_ns += share.ns;
    EXPECT_LE(disk_ns, 21'000) << describe(paths[0]);  // the very first part
  }
}

// The message that rank 1 waits for came late because rank 0's disk did; rank 0's disk had rested
// until then.
TEST(CriticalPath, AWaitForARankThatWaitedForItsDiskIsThatDisk) {
  const std::vector<RankTimeline> ranks{RankBuilder(0, "a")
                                            .label(Phase::kNone, 0, -1)
                                            .add(kRead, 100, 799, 0, 500)
                                            .label(Phase::kDecode, 0, 0)
                                            .add(kEmbedding, 0, 100)
                                            .add(kWeightWait, 100, 800, 0)
                                            .add(kMlp, 800, 850, 0)
                                            .add(kSend, 850, 860),
                                        RankBuilder(1, "b")
                                            .label(Phase::kNone, 0, -1)
                                            .add(kRead, 0, 300, 1, 500)
                                            .label(Phase::kDecode, 0, 0)
                                            .add(kIdle, 0, 900)
                                            .add(kWeightWait, 900, 901, 1)
                                            .add(kMlp, 901, 1000, 1)};
  const std::vector<CriticalPath> paths = critical_paths(ranks);
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(share_us(paths[0], 0, Activity::kRead), 700);
  EXPECT_EQ(share_us(paths[0], 0, Activity::kEmbedding), 100);
  EXPECT_EQ(share_us(paths[0], 0, Activity::kWait), 40);
  EXPECT_EQ(share_us(paths[0], 1, Activity::kRead), 1);
  EXPECT_EQ(describe(paths[0]).rfind("rank 0's disk: 70 % of the step; ", 0), 0u);
}

TEST(CriticalPath, ReadsBeforeWhatWasMeasuredDoNotCount) {
  const std::vector<CriticalPath> paths = critical_paths({RankBuilder(0, "a")
                                                              .label(Phase::kNone, 0, -1)
                                                              .add(kRead, 0, 900, 0, 5)
                                                              .add(kRead, 890, 1500, 1, 5)
                                                              .label(Phase::kDecode, -1, 0)
                                                              .add(kMlp, 910, 1000, 0)
                                                              .label(Phase::kDecode, 0, 1)
                                                              .add(kEmbedding, 1000, 1100)
                                                              .add(kWeightWait, 1100, 1500, 1)
                                                              .add(kMlp, 1500, 1600, 1)});
  ASSERT_EQ(paths.size(), 1u);
  EXPECT_EQ(share_us(paths[0], 0, Activity::kRead), 500);
  EXPECT_EQ(paths[0].total_ns, 600'000);
}

}  // namespace
}  // namespace stagecoach
