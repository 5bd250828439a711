#include "plan/device_residency.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace stagecoach {
namespace {

constexpr std::int64_t kAttention = 100, kMlp = 200, kLayer = kAttention + kMlp;

ResidencyRequest slice(std::int64_t layers) {
  return {.sizes = {.attention = kAttention,
                    .mlp = kMlp,
                    .embedding_in_memory = 500,
                    .embedding_on_disk = 60,
                    .head_in_memory = 510,
                    .head_on_disk = 70,
                    .head_matrix = 500,
                    .row_buffer = 40},
          .windows = {layers},
          .ranks = 1,
          .memory = 0};
}

std::int64_t held(const Residency& residency) {
  return std::count(residency.pinned.begin(), residency.pinned.end(), true);
}

TEST(DeviceResidency, AllOfItFitsOrLayersPassThrough) {
  const ResidencyRequest request = slice(8);
  const std::int64_t all = 8 * kLayer + 60 + 40 + 510;
  const auto whole = plan_device(request, all);
  ASSERT_TRUE(whole);
  EXPECT_EQ(held(*whole), 8);
  EXPECT_EQ(whole->streamed, 0);
  EXPECT_EQ(whole->memory, all);
  const auto less = plan_device(request, all - 1);
  ASSERT_TRUE(less);
  EXPECT_GT(less->streamed, 0);
  EXPECT_LE(less->memory, all - 1);
  EXPECT_FALSE(plan_device(request, smallest_device_memory(request) - 1));
  EXPECT_TRUE(plan_device(request, smallest_device_memory(request)));
}

// A driver gives 2 MiB at a time: that is what parts take there, and not what is copied.
TEST(DeviceResidency, CountsWhatADriverRoundsUp) {
  constexpr std::int64_t kMiB = 1 << 20;
  ResidencyRequest request = slice(8);
  request.sizes.attention = kMiB + 1;  // 2 MiB
  request.sizes.mlp = 4 * kMiB + 1;    // 6 MiB
  request.sizes.head_matrix = 3 * kMiB;
  request.sizes.head_in_memory = request.sizes.head_on_disk = 3 * kMiB + 10;  // 1 MiB more
  const std::int64_t ends = 60 + 40 + 4 * kMiB + 10, all = 8 * 8 * kMiB + ends;
  const auto whole = plan_device(request, all);
  ASSERT_TRUE(whole);
  EXPECT_EQ(held(*whole), 8);
  EXPECT_EQ(whole->memory, all);
  const auto less = plan_device(request, all - 1);
  ASSERT_TRUE(less);
  EXPECT_LT(held(*less), 8);
  EXPECT_EQ(less->streamed, (8 - held(*less)) * request.sizes.layer());
  EXPECT_LE(less->memory, all - 1);
  EXPECT_EQ(smallest_device_memory(request), 8 * kMiB + ends);
  request.windows.clear();
  EXPECT_EQ(smallest_device_memory(request), ends);
}

// Whatever the device's memory and the host's: each layer is on the device, or the host accounts
// for it; nobody has more than there is.
TEST(DeviceResidency, EveryLayerIsSomewhere) {
  for (std::int64_t device_memory = 0; device_memory < 3600; device_memory += 90)
    for (std::int64_t memory = 0; memory < 3600; memory += 90) {
      ResidencyRequest request = slice(8);
      request.windows = {3, 5};
      request.memory = memory;
      const auto device = plan_device(request, device_memory);
      if (!device) continue;
      EXPECT_LE(device->memory, device_memory);
      const ResidencyRequest left = beside_device(request, *device);
      std::int64_t passing = 0;
      for (const std::int64_t layers : left.windows) passing += layers;
      EXPECT_EQ(passing + held(*device), 8);
      const auto host = plan_host(left);
      if (!host) continue;
      EXPECT_LE(host->memory, memory);
      EXPECT_EQ(static_cast<std::int64_t>(host->pinned.size()), passing);
    }
}

TEST(DeviceResidency, AHeadOnTheDeviceIsNotTheHostsToo) {
  ResidencyRequest request = slice(2);
  request.memory = 60 + 70;  // the ends on disk
  const auto device = plan_device(request, 2 * kLayer + 60 + 40 + 510);
  ASSERT_TRUE(device && device->head_in_memory);
  const auto host = plan_host(beside_device(request, *device));
  ASSERT_TRUE(host);
  EXPECT_EQ(host->streamed, 0);
  request.memory -= 1;
  EXPECT_FALSE(plan_host(beside_device(request, *device)));
}

// The last layers of windows, as evenly as can be, and in the host's memory beside what is there.
TEST(DeviceSplit, LayersOfTheProcessor) {
  ResidencyRequest request = slice(8);
  request.windows = {3, 1, 4};
  request.memory = 60 + 70 + 4 * kLayer;
  const auto split = plan_split(request, 4 * kLayer + 60 + 40 + 510, 4);
  ASSERT_TRUE(split);
  EXPECT_EQ(split->on_cpu, (std::vector<bool>{false, false, true, true, false, false, true, true}));
  EXPECT_EQ(split->cpu_layers(), 4);
  EXPECT_EQ(split->crossings, 6);
  EXPECT_EQ(split->device.pinned, std::vector<bool>(4, true));
  EXPECT_EQ(split->device.streamed, 0);
  EXPECT_TRUE(split->host.pinned.empty());
  EXPECT_EQ(split->host_memory, request.memory);
  request.memory -= 1;
  EXPECT_FALSE(plan_split(request, 4 * kLayer + 60 + 40 + 510, 4));
}

// Copies go on while the processor computes.
TEST(DeviceSplit, BetweenLayersThatPassThroughTheDevice) {
  ResidencyRequest request = slice(8);
  request.windows = {6, 2};
  request.memory = 570 + 580 + 8 * kLayer;
  const auto split = plan_split(request, smallest_device_memory(request), 4);
  ASSERT_TRUE(split);
  EXPECT_GT(split->device.streamed, 0);
  EXPECT_EQ(split->on_cpu, (std::vector<bool>{false, true, false, true, false, true, false, true}));
  EXPECT_EQ(split->crossings, 8);
}

TEST(DeviceSplit, AllLayersOrNone) {
  ResidencyRequest request = slice(8);
  request.memory = 570 + 580 + 8 * kLayer;
  const auto all = plan_split(request, 60 + 40 + 510, 8);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->cpu_layers(), 8);
  EXPECT_TRUE(all->device.pinned.empty());
  EXPECT_EQ(all->device.attention_slots, 0);
  EXPECT_TRUE(all->device.head_in_memory);
  const std::int64_t least = smallest_device_memory(beside_processor(request, 8));
  EXPECT_EQ(least, 60 + 40 + 70);
  EXPECT_TRUE(plan_split(request, least, 8));
  EXPECT_FALSE(plan_split(request, least - 1, 8));
  const auto none = plan_split(request, 3000, 0);
  ASSERT_TRUE(none);
  EXPECT_EQ(none->cpu_layers(), 0);
  EXPECT_EQ(none->device.pinned, plan_device(request, 3000)->pinned);
}

// Whatever there is of both memories: every layer is in one place, and nobody has more than there
// is.
TEST(DeviceSplit, EveryLayerIsSomewhere) {
  for (std::int64_t device_memory = 100; device_memory < 3000; device_memory += 170)
    for (std::int64_t memory = 100; memory < 3600; memory += 170)
      for (std::int64_t cpu_layers = 0; cpu_layers <= 8; ++cpu_layers) {
        ResidencyRequest request = slice(8);
        request.windows = {3, 5};
        request.memory = memory;
        const auto split = plan_split(request, device_memory, cpu_layers);
        if (!split) continue;
        EXPECT_EQ(split->on_cpu.size(), 8u);
        EXPECT_EQ(split->cpu_layers(), cpu_layers);
        EXPECT_EQ(static_cast<std::int64_t>(split->device.pinned.size()), 8 - cpu_layers);
        EXPECT_EQ(split->host.pinned.size(),
                  split->device.pinned.size() - static_cast<std::size_t>(held(split->device)));
        EXPECT_LE(split->device.memory, device_memory);
        EXPECT_LE(split->host_memory, memory);
        EXPECT_GE(split->host_memory, cpu_layers * kLayer);
      }
}

}  // namespace
}  // namespace stagecoach
