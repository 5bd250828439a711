#include "plan/cpu_layers.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace stagecoach {
namespace {

// Whole granules of a device's memory.
constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kAttention = 96 * kMiB, kMlp = 190 * kMiB, kLayer = kAttention + kMlp;
constexpr std::int64_t kLayers = 24;
constexpr SplitRates kRates{.bus = 12e9, .disk = 2e9};

// With what layers of that size cost a card and a processor that read 300 and 40 GB/s.
PassCost decode(double steps) {
  return {.passes = steps,
          .device_layer = kLayer / 300e9,
          .cpu_layer = kLayer / 40e9,
          .cpu_layer_beside_copies = kLayer / 28e9,
          .crossing = 30e-6,
          .one_micro_batch = true};
}
// Many rows: the card has a hundred times the arithmetic.
PassCost prefill(double passes) {
  return {.passes = passes,
          .device_layer = 0.005,
          .cpu_layer = 0.5,
          .cpu_layer_beside_copies = 0.5,
          .crossing = 1e-3,
          .one_micro_batch = false};
}

class CpuLayers : public ::testing::Test {
 protected:
  SplitOf splits(std::int64_t device_layers, std::int64_t host_layers,
                 std::vector<std::int64_t> windows = {kLayers}) {
    ResidencyRequest request{.sizes = {.attention = kAttention, .mlp = kMlp},
                             .windows = std::move(windows),
                             .memory = host_layers * kLayer};
    return [=](std::int64_t cpu_layers) {
      return plan_split(request, device_layers * kLayer, cpu_layers);
    };
  }
};

TEST_F(CpuLayers, DecodeReadsThemWhereTheyAre) {
  const auto split = best_split(splits(8, 30), kLayers, {decode(100)}, kRates);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->cpu_layers(), 16);
  EXPECT_EQ(split->device.streamed, 0);
  EXPECT_NEAR(pass_seconds(*split, decode(1), kRates),
              16 * kLayer / 40e9 + 8 * kLayer / 300e9 + 60e-6, 1e-9);
}

TEST_F(CpuLayers, PrefillIsTheDevices) {
  const auto split = best_split(splits(8, 30), kLayers, {prefill(3)}, kRates);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->cpu_layers(), 0);
}

// What the steps gain has to be more than what the prompt loses.
TEST_F(CpuLayers, PromptsAndStepsAreAddedUp) {
  const SplitOf split_of = splits(8, 30);
  EXPECT_EQ(best_split(split_of, kLayers, {prefill(1), decode(2)}, kRates)->cpu_layers(), 0);
  EXPECT_EQ(best_split(split_of, kLayers, {prefill(1), decode(1000)}, kRates)->cpu_layers(), 16);
}

TEST_F(CpuLayers, ADeviceThatHoldsAllComputesAll) {
  PassCost cost = decode(1);
  cost.cpu_layer = cost.cpu_layer_beside_copies = 1e-9;
  EXPECT_EQ(best_split(splits(kLayers, 30), kLayers, {cost}, kRates)->cpu_layers(), 0);
}

// The processor beside a bus of the same rate: while it computes, the device's slots fill.
TEST_F(CpuLayers, SomeOnEachSideWhereBothAreAlike) {
  PassCost cost = decode(10);
  cost.cpu_layer = cost.cpu_layer_beside_copies = kLayer / 13e9;
  const auto split = best_split(splits(8, 30, {12, 12}), kLayers, {cost}, kRates);
  ASSERT_TRUE(split);
  EXPECT_GT(split->cpu_layers(), 2);
  EXPECT_LT(split->cpu_layers(), 24);
}

// The disk bounds a pass, whoever computes.
TEST_F(CpuLayers, LayersFromDiskStayWithTheDevice) {
  const SplitOf split_of = splits(2, 6);
  const auto alone = split_of(0), split = best_split(split_of, kLayers, {decode(10)}, kRates);
  ASSERT_TRUE(alone && split);
  EXPECT_GT(split->host.streamed, 0);
  EXPECT_EQ(split->cpu_layers(), 0);
}

// As where keys and values of all layers are too many for its memory.
TEST_F(CpuLayers, AsFewAsTheDeviceLeaves) {
  const SplitOf all = splits(8, 30);
  const SplitOf split_of = [&](std::int64_t layers) {
    return layers < 5 ? std::nullopt : all(layers);
  };
  EXPECT_EQ(best_split(split_of, kLayers, {prefill(3)}, kRates)->cpu_layers(), 6);
  EXPECT_FALSE(best_split([](std::int64_t) { return std::nullopt; }, kLayers, {}, kRates));
}

TEST_F(CpuLayers, NeverSlowerThanTheDeviceAlone) {
  for (const std::int64_t device : {1, 2, 5, 13, 23, 24})
    for (const std::int64_t host : {1, 3, 12, 24})
      for (const double memory : {5e9, 12e9, 40e9})
        for (const double steps : {0, 1, 1000}) {
          PassCost step = decode(steps);
          step.cpu_layer = kLayer / memory;
          step.cpu_layer_beside_copies = 2 * step.cpu_layer;
          const std::vector<PassCost> costs{prefill(1), step};
          const SplitOf split_of = splits(device, host, {9, 9, 6});
          const auto alone = split_of(0), best = best_split(split_of, kLayers, costs, kRates);
          ASSERT_EQ(alone.has_value(), best.has_value());
          if (alone) {
            EXPECT_LE(job_seconds(*best, costs, kRates), job_seconds(*alone, costs, kRates));
          }
        }
}

}  // namespace
}  // namespace stagecoach
