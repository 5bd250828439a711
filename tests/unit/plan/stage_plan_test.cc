#include "plan/stage_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "base/error.h"

namespace stagecoach {
namespace {

void expect_usage_error(const std::function<void()>& action, const std::string& named) {
  try {
    action();
    ADD_FAILURE() << "nothing was thrown, expected \"" << named << "\"";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
  }
}

std::int64_t largest_window(const PlanCosts& costs, const std::vector<std::int64_t>& sizes) {
  std::int64_t largest = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    std::int64_t bytes = sizes[i] * costs.layer_bytes;
    if (i == 0) bytes += costs.embedding_bytes;
    if (i + 1 == sizes.size()) bytes += costs.head_bytes;
    largest = std::max(largest, bytes);
  }
  return largest;
}

// The best over all ways to cut `layers` into `windows` pieces.
std::int64_t best_by_trying_all(const PlanCosts& costs, std::int64_t layers, std::int64_t windows) {
  std::int64_t best = std::numeric_limits<std::int64_t>::max();
  std::vector<std::int64_t> sizes;
  const std::function<void(std::int64_t)> extend = [&](std::int64_t left) {
    if (static_cast<std::int64_t>(sizes.size()) + 1 == windows) {
      sizes.push_back(left);
      best = std::min(best, largest_window(costs, sizes));
      sizes.pop_back();
      return;
    }
    for (std::int64_t size = 1;
         left - size >= windows - static_cast<std::int64_t>(sizes.size()) - 1; ++size) {
      sizes.push_back(size);
      extend(left - size);
      sizes.pop_back();
    }
  };
  extend(layers);
  return best;
}

TEST(BalancedPlan, NoSplitHasASmallerLargestWindow) {
  for (std::int64_t layers = 1; layers <= 9; ++layers)
    for (int ranks = 1; ranks <= layers; ++ranks)
      for (int rounds = 1; ranks * rounds <= layers; ++rounds)
        for (std::int64_t embedding : {0, 3, 10, 25, 90})
          for (std::int64_t head : {0, 4, 11, 60}) {
            const PlanCosts costs{
                .layer_bytes = 10, .embedding_bytes = embedding, .head_bytes = head};
            const StagePlan plan = balanced_plan(costs, 2, 2 + layers, ranks, rounds);
            ASSERT_EQ(plan.windows.size(), static_cast<std::size_t>(ranks * rounds));
            std::vector<std::int64_t> sizes;
            std::int64_t next = 2;
            for (std::size_t i = 0; i < plan.windows.size(); ++i) {
              EXPECT_EQ(plan.windows[i].begin, next);
              EXPECT_EQ(plan.windows[i].rank, static_cast<int>(i) % ranks);
              sizes.push_back(plan.windows[i].end - plan.windows[i].begin);
              EXPECT_GE(sizes.back(), 1);
              next = plan.windows[i].end;
            }
            EXPECT_EQ(next, 2 + layers);
            EXPECT_EQ(largest_window(costs, sizes),
                      best_by_trying_all(costs, layers, ranks * rounds))
                << layers << " layers, " << ranks << " ranks, " << rounds << " rounds, "
                << embedding << ", " << head;
          }
}

TEST(BalancedPlan, EvenWithoutEndsAndLighterWhereTheEmbeddingIs) {
  EXPECT_EQ(balanced_plan({.layer_bytes = 1}, 0, 12, 4, 1).windows,
            (std::vector<Window>{{0, 3, 0}, {3, 6, 1}, {6, 9, 2}, {9, 12, 3}}));
  EXPECT_EQ(balanced_plan({.layer_bytes = 10, .embedding_bytes = 20}, 0, 10, 2, 1).windows,
            (std::vector<Window>{{0, 4, 0}, {4, 10, 1}}));
  EXPECT_EQ(balanced_plan({.layer_bytes = 10, .embedding_bytes = 0, .head_bytes = 20}, 0, 10, 2, 1)
                .windows,
            (std::vector<Window>{{0, 6, 0}, {6, 10, 1}}));
}

TEST(BalancedPlan, MoreWindowsThanLayersIsAUsageError) {
  expect_usage_error([] { balanced_plan({.layer_bytes = 1}, 0, 4, 5, 1); },
                     "5 ranks need at least 5 layers, the model has 4");
  expect_usage_error([] { balanced_plan({.layer_bytes = 1}, 0, 4, 2, 3); },
                     "2 ranks with 3 rounds need at least 5 layers");
  try {
    balanced_plan({.layer_bytes = 1}, 0, 4, 1, 9);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.hint(), "use at most --rounds 4");
  }
}

TEST(BalancedPlan, TheLastRoundMayBeCutShort) {
  const StagePlan plan = balanced_plan({.layer_bytes = 1}, 0, 10, 4, 3);
  ASSERT_EQ(plan.windows.size(), 10U);
  EXPECT_EQ(plan.largest_window(), 1);
  EXPECT_EQ(plan.last_rank(), 1);
  EXPECT_EQ(plan.describe(1), "layers 1:2,5:6,9:10");
  EXPECT_EQ(balanced_plan({.layer_bytes = 1}, 0, 10, 4, 2).largest_window(), 2)
      << "rounds need not divide the layers";
}

TEST(ExplicitPlan, TakesOneWindowPerRankOrMore) {
  EXPECT_EQ(explicit_plan("0:4,4:6,6:8", 0, 8, 2).last_rank(), 0);
  const StagePlan plan = explicit_plan("0:2,2:5,5:6,6:8", 0, 8, 2);
  EXPECT_EQ(plan.windows, (std::vector<Window>{{0, 2, 0}, {2, 5, 1}, {5, 6, 0}, {6, 8, 1}}));
  EXPECT_EQ(plan.describe(0), "layers 0:2,5:6");
  EXPECT_EQ(plan.describe(1), "layers 2:5,6:8");
  EXPECT_EQ(plan.last_rank(), 1);
  EXPECT_EQ(explicit_plan("3:5,5:9", 3, 9, 2).layer_begin(), 3);
}

TEST(ExplicitPlan, NamesWhatDoesNotFit) {
  expect_usage_error([] { explicit_plan("0:2,3:8", 0, 8, 2); }, "begins at layer 2, found 3:8");
  expect_usage_error([] { explicit_plan("0:4,2:8", 0, 8, 2); }, "begins at layer 4, found 2:8");
  expect_usage_error([] { explicit_plan("1:4,4:8", 0, 8, 2); }, "begins at layer 0");
  expect_usage_error([] { explicit_plan("0:4,4:7", 0, 8, 2); }, "end at layer 8, found 7");
  expect_usage_error([] { explicit_plan("0:4,4:9", 0, 8, 2); }, "4:9");
  expect_usage_error([] { explicit_plan("0:8", 0, 8, 2); }, "one window per rank (2)");
  expect_usage_error([] { explicit_plan("0:4,4:8,", 0, 8, 2); }, "not a layer range");
  expect_usage_error([] { explicit_plan("", 0, 8, 2); }, "not a layer range");
}

TEST(LayerRange, Table) {
  EXPECT_EQ(parse_layer_range("0:12", 12), (std::pair<std::int64_t, std::int64_t>{0, 12}));
  EXPECT_EQ(parse_layer_range("11:12", 12), (std::pair<std::int64_t, std::int64_t>{11, 12}));
  for (const char* text : {"", ":", "3", "3:", ":3", "a:3", "3:b", "3:4:5", " 0:3", "0: 3", "0:3 ",
                           "+0:3", "-0:3", "-1:3", "0x0:3", "1.0:3", "0:99999999999999999999"})
    expect_usage_error([&] { parse_layer_range(text, 12); }, "not a layer range");
  for (const char* text : {"3:3", "4:3", "0:13", "12:13"})
    expect_usage_error([&] { parse_layer_range(text, 12); }, "0 ≤ A < B ≤ 12");
}

TEST(PlanHash, DiffersWithWindowsAndRanks) {
  const StagePlan plan = explicit_plan("0:4,4:8", 0, 8, 2);
  EXPECT_EQ(plan_hash(plan), plan_hash(explicit_plan("0:4,4:8", 0, 8, 2)));
  EXPECT_NE(plan_hash(plan), plan_hash(explicit_plan("0:5,5:8", 0, 8, 2)));
  EXPECT_NE(plan_hash(plan), plan_hash(explicit_plan("0:4,4:8", 0, 8, 1)));
  StagePlan swapped = plan;
  std::swap(swapped.windows[0].rank, swapped.windows[1].rank);
  EXPECT_NE(plan_hash(plan), plan_hash(swapped));
}

}  // namespace
}  // namespace stagecoach
