#include "plan/residency.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

namespace stagecoach {
namespace {

constexpr std::int64_t kAttention = 100, kMlp = 200, kLayer = kAttention + kMlp;

ResidencyRequest request(std::vector<std::int64_t> windows, int ranks, std::int64_t memory) {
  return {.sizes = {.attention = kAttention, .mlp = kMlp},
          .windows = std::move(windows),
          .ranks = ranks,
          .memory = memory};
}

std::int64_t pinned(const Residency& residency) {
  return std::count(residency.pinned.begin(), residency.pinned.end(), true);
}

TEST(Residency, WhatFitsIsPinned) {
  const auto all = plan_residency(request({4, 4}, 4, 8 * kLayer));
  ASSERT_TRUE(all);
  EXPECT_EQ(pinned(*all), 8);
  EXPECT_EQ(all->attention_slots + all->mlp_slots, 0);
  EXPECT_EQ(all->streamed, 0);
  EXPECT_EQ(all->waited, 0);
}

TEST(Residency, OneByteLessStreams) {
  const auto most = plan_residency(request({4, 4}, 1, 8 * kLayer - 1));
  ASSERT_TRUE(most);
  EXPECT_EQ(pinned(*most), 6);
  EXPECT_GE(most->attention_slots, 1);
  EXPECT_GE(most->mlp_slots, 1);
  EXPECT_EQ(most->streamed, 2 * kLayer);
}

TEST(Residency, TheSmallestIsOneLayer) {
  const auto least = plan_residency(request({3}, 1, kLayer));
  ASSERT_TRUE(least);
  EXPECT_EQ(pinned(*least), 0);
  EXPECT_EQ(least->attention_slots, 1);
  EXPECT_EQ(least->mlp_slots, 1);
  EXPECT_FALSE(plan_residency(request({3}, 1, kLayer - 1)));
  EXPECT_EQ(smallest_memory(request({3}, 1, 0)), kLayer);
}

TEST(Residency, EndsGoToDiskWhenTheyMust) {
  ResidencyRequest tight = request({3}, 1, kLayer + 30);
  tight.sizes.embedding_in_memory = 500;
  tight.sizes.embedding_on_disk = 10;
  tight.sizes.head_in_memory = 400;
  tight.sizes.head_on_disk = 20;
  tight.sizes.head_matrix = 390;
  const auto found = plan_residency(tight);
  ASSERT_TRUE(found);
  EXPECT_FALSE(found->embedding_in_memory);
  EXPECT_FALSE(found->head_in_memory);
  EXPECT_EQ(found->streamed, 3 * kLayer + 390);
  EXPECT_EQ(smallest_memory(tight), kLayer + 30);
  --tight.memory;
  EXPECT_FALSE(plan_residency(tight));
}

TEST(Residency, SeveralMicroBatchesWantRoomForTheNextLayer) {
  ResidencyRequest prefill = request({1, 1, 1, 1}, 4, 3 * kLayer);
  prefill.one_micro_batch = false;
  const auto found = plan_residency(prefill);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->attention_slots, 2);
  EXPECT_EQ(found->mlp_slots, 2);
  EXPECT_EQ(pinned(*found), 1);
  EXPECT_EQ(found->waited, found->streamed);
}

// Never more memory than was given, every layer either pinned or streamed, no window much fuller
// than another, and never worse with more memory.
TEST(Residency, HoldsForAnySizes) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 300; ++trial) {
    const int ranks = 1 + static_cast<int>(random() % 6);
    std::vector<std::int64_t> windows(1 + random() % 8, 1 + static_cast<int>(random() % 5));
    const std::int64_t layers = std::accumulate(windows.begin(), windows.end(), std::int64_t{0});
    std::int64_t before = -1;
    for (std::int64_t memory = kLayer; memory <= (layers + 1) * kLayer; memory += 70) {
      const auto found = plan_residency(request(windows, ranks, memory));
      ASSERT_TRUE(found);
      EXPECT_LE(found->memory, memory);
      EXPECT_EQ(static_cast<std::int64_t>(found->pinned.size()), layers);
      EXPECT_EQ(found->streamed, (layers - pinned(*found)) * kLayer);
      EXPECT_EQ(found->attention_slots > 0, pinned(*found) < layers);
      if (before >= 0) {
        EXPECT_LE(found->waited, before) << memory << " bytes";
      }
      before = found->waited;
    }
  }
}

// With layers that are small beside everything else, the plan comes near DESIGN's bound.
TEST(Residency, ReachesTheBoundWhenLayersAreSmall) {
  for (const int rounds : {1, 2, 8}) {
    const std::int64_t layers = 512;
    const std::vector<std::int64_t> windows(static_cast<std::size_t>(rounds), layers / rounds);
    const std::int64_t slice = layers * kLayer, memory = slice / 2;
    const auto found = plan_residency(request(windows, 4, memory));
    ASSERT_TRUE(found);
    const double bound = rounds == 1 ? 4.0 * static_cast<double>(slice - memory)
                                     : streamed_bound(static_cast<double>(slice),
                                                      static_cast<double>(memory), 4, rounds);
    EXPECT_GE(static_cast<double>(found->waited), 0.999 * bound) << rounds;
    EXPECT_LE(static_cast<double>(found->waited), 1.03 * bound) << rounds;
  }
}

TEST(Residency, CandidatesOfRounds) {
  EXPECT_EQ(candidate_rounds(96, 4), (std::vector<int>{1, 2, 3, 4, 6, 8, 12, 16, 24}));
  EXPECT_EQ(candidate_rounds(10, 4), (std::vector<int>{1, 2, 3}));
  EXPECT_EQ(candidate_rounds(4, 4), (std::vector<int>{1}));
  EXPECT_EQ(candidate_rounds(1, 1), (std::vector<int>{1}));
}

}  // namespace
}  // namespace stagecoach
