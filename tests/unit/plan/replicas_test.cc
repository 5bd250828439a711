#include "plan/replicas.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace stagecoach {
namespace {

int rank_of(const StagePlan& plan, std::int64_t layer) {
  for (const Window& window : plan.windows)
    if (layer >= window.begin && layer < window.end) return window.rank;
  return -1;
}

// Layers in random windows, ranks one after the other around the ring.
StagePlan random_plan(std::mt19937& random, int ranks) {
  StagePlan plan{.ranks = ranks, .windows = {}};
  const int windows = ranks + static_cast<int>(random() % (3 * static_cast<unsigned>(ranks)));
  std::int64_t layer = 0;
  for (int i = 0; i < windows; ++i) {
    const auto layers = 1 + static_cast<std::int64_t>(random() % 4);
    plan.windows.push_back({.begin = layer, .end = layer + layers, .rank = i % ranks});
    layer += layers;
  }
  return plan;
}

TEST(Replicas, WhateverIsLostItsCopiesAreWhereThePlanLooks) {
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const int ranks = 2 + static_cast<int>(random() % 6);
    const StagePlan plan = random_plan(random, ranks);
    const Replicas replicas = replicas_of(plan);
    const auto lost = static_cast<int>(random() % static_cast<unsigned>(ranks));
    const StagePlan left = take_over(plan, lost);
    ASSERT_EQ(left.ranks, ranks - 1);
    const auto before = [&](int rank) { return rank >= lost ? rank + 1 : rank; };
    for (std::int64_t layer = 0; layer < plan.layer_end(); ++layer) {
      const int own = rank_of(plan, layer),
                second = replicas.layers[static_cast<std::size_t>(layer)];
      ASSERT_NE(own, second);
      ASSERT_EQ(before(rank_of(left, layer)), own == lost ? second : own);
    }
    // Embedding and head, too.
    ASSERT_NE(replicas.embedding, plan.windows.front().rank);
    ASSERT_NE(replicas.head, plan.last_rank());
    if (plan.windows.front().rank == lost) {
      ASSERT_EQ(before(left.windows.front().rank), replicas.embedding);
    }
    if (plan.last_rank() == lost) {
      ASSERT_EQ(before(left.last_rank()), replicas.head);
    }
    // --windows takes it: around the ring, without gaps, everyone at least once.
    const StagePlan read = explicit_plan(windows_flag(left), 0, plan.layer_end(), left.ranks);
    ASSERT_EQ(read.windows, left.windows);
  }
}

TEST(Replicas, NeighboursShareASlice) {
  const StagePlan plan = explicit_plan("0:4,4:8,8:12", 0, 12, 3);
  EXPECT_EQ(windows_flag(take_over(plan, 1)), "0:6,6:12");
  EXPECT_EQ(windows_flag(take_over(plan, 0)), "0:8,8:12");
  EXPECT_EQ(windows_flag(take_over(plan, 2)), "0:4,4:12");
  EXPECT_EQ(windows_flag(take_over(take_over(plan, 1), 0)), "0:12");
}

}  // namespace
}  // namespace stagecoach
