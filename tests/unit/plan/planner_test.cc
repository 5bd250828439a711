#include "plan/planner.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <random>

#include "base/device_granule.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kLayer = 1'000'000'000;
constexpr std::int64_t kOther = 100'000'000;  // of each rank, besides weights
constexpr std::int64_t kEnd = 200'000'000;    // embedding, and head

ModelSpec spec_of(std::int64_t layers) {
  ModelSpec spec;
  spec.num_hidden_layers = layers;
  spec.hidden_size = spec.embedding_size = 4096;
  spec.intermediate_size = 16384;
  spec.num_attention_heads = spec.num_key_value_heads = 32;
  spec.head_dim = 128;
  spec.vocab_size = 50000;
  return spec;
}

HostSpec host(const std::string& name, std::int64_t memory) {
  HostSpec spec;
  spec.name = name;
  spec.memory = memory;
  spec.rates = {.memory = 40e9, .f32 = 400e9, .bf16 = 400e9, .int8 = 800e9, .disk = 1e9};
  return spec;
}

// `count` hosts alike.
ClusterSpec cluster_of(int count, std::int64_t memory) {
  ClusterSpec cluster;
  for (int i = 0; i < count; ++i) cluster.hosts.push_back(host("pc-" + std::to_string(i), memory));
  return cluster;
}

PlanQuestion question_of(const ModelSpec& spec, ClusterSpec cluster) {
  PlanQuestion question(spec);
  question.layer_bytes = kLayer;
  question.head_bytes = kEnd;
  question.cluster = std::move(cluster);
  question.slice_sizes = [](bool embedding, bool head) {
    WeightSizes sizes{.attention = kLayer / 3, .mlp = kLayer - kLayer / 3};
    if (embedding) sizes.embedding_in_memory = kEnd, sizes.embedding_on_disk = kEnd / 10;
    if (head) sizes.head_in_memory = sizes.head_matrix = kEnd, sizes.head_on_disk = kEnd / 10;
    return sizes;
  };
  question.other_memory = [](const RankShape&) { return kOther; };
  return question;
}

// What every plan must be: windows without gaps, no host beyond its memory.
void expect_sound(const PlanQuestion& question, const ClusterPlan& plan) {
  const StagePlan again = explicit_plan(windows_flag(plan.stages), 0,
                                        question.spec.num_hidden_layers, plan.stages.ranks);
  EXPECT_EQ(again.windows, plan.stages.windows);
  EXPECT_EQ(plan.hosts.size() + plan.left_out.size(), question.cluster.hosts.size());
  std::int64_t layers = 0;
  for (const HostPlan& host : plan.hosts) {
    EXPECT_LE(host.memory, question.cluster.hosts[host.host].memory);
    EXPECT_LE(host.layers_in_memory(), host.layers);
    layers += host.layers;
  }
  EXPECT_EQ(layers, question.spec.num_hidden_layers);
  EXPECT_GT(plan.step_seconds, 0);
  EXPECT_GT(plan.time_to_first_token, 0);
}

TEST(Planner, LikeHostsShareAlike) {
  const ModelSpec spec = spec_of(24);
  PlanQuestion question = question_of(spec, cluster_of(4, 8 * kLayer));
  question.sequences = 8;  // which keep all of them busy
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_EQ(plan.hosts.size(), 4u);
  for (const HostPlan& host : plan.hosts) EXPECT_EQ(host.layers, 6);
  EXPECT_FALSE(plan.in_passes);
  EXPECT_EQ(plan.rounds, 1);
}

TEST(Planner, MoreMemoryTakesMoreLayers) {
  const ModelSpec spec = spec_of(20);
  ClusterSpec cluster = cluster_of(3, 6 * kLayer);
  cluster.hosts[1].memory = 12 * kLayer;
  const PlanQuestion question = question_of(spec, cluster);
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  EXPECT_FALSE(plan.in_passes);
  EXPECT_GE(plan.hosts[1].layers, 10);
}

TEST(Planner, AFasterHostTakesMoreLayers) {
  const ModelSpec spec = spec_of(24);
  ClusterSpec cluster = cluster_of(2, 40 * kLayer);
  cluster.hosts[0].rates = {
      .memory = 80e9, .f32 = 800e9, .bf16 = 800e9, .int8 = 1600e9, .disk = 1e9};
  PlanQuestion question = question_of(spec, cluster);
  question.prompt_tokens = 8192;  // many micro-batches, which keep both busy
  question.new_tokens = 1;
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_EQ(plan.hosts.size(), 2u);
  EXPECT_EQ(plan.hosts[0].layers, 16);
}

TEST(Planner, WhatDoesNotFitStreamsInRounds) {
  const ModelSpec spec = spec_of(96);
  const PlanQuestion question = question_of(spec, cluster_of(4, 12 * kLayer));
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  EXPECT_TRUE(plan.in_passes);
  EXPECT_GT(plan.rounds, 4);
  EXPECT_EQ(plan.bound, Bound::kDisk);
  // DESIGN's bound, with the memory that is left for weights.
  const double bound = streamed_bound(24.0 * kLayer, 12.0 * kLayer - kOther, 4, plan.rounds) / 1e9;
  EXPECT_GE(plan.step_seconds, 0.95 * bound);
  EXPECT_LE(plan.step_seconds, 1.35 * bound);
}

TEST(Planner, ASlowDiskStreamsLess) {
  const ModelSpec spec = spec_of(64);
  ClusterSpec cluster = cluster_of(3, 12 * kLayer);
  cluster.hosts[2].rates.disk = 0.4e9;
  const PlanQuestion question = question_of(spec, cluster);
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_EQ(plan.hosts.size(), 3u);
  EXPECT_LT(plan.hosts[2].residency.streamed, plan.hosts[0].residency.streamed);
  EXPECT_LT(plan.hosts[2].layers, plan.hosts[0].layers);
}

TEST(Planner, AHostThatSlowsTheJobDownIsLeftOut) {
  const ModelSpec spec = spec_of(24);
  ClusterSpec cluster = cluster_of(4, 12 * kLayer);
  cluster.hosts[1].rates = {.memory = 1e9, .f32 = 5e9, .bf16 = 5e9, .int8 = 5e9, .disk = 0.05e9};
  const PlanQuestion question = question_of(spec, cluster);
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_FALSE(plan.left_out.empty());
  EXPECT_EQ(plan.left_out[0].host, 1u);
  EXPECT_NE(plan.left_out[0].reason.find("s without"), std::string::npos)
      << plan.left_out[0].reason;
}

TEST(Planner, AHostWithoutRoomForALayerIsLeftOut) {
  const ModelSpec spec = spec_of(24);
  ClusterSpec cluster = cluster_of(3, 12 * kLayer);
  cluster.hosts[0].memory = kLayer / 2;
  const PlanQuestion question = question_of(spec, cluster);
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_EQ(plan.left_out.size(), 1u);
  EXPECT_NE(plan.left_out[0].reason.find("cannot hold one layer"), std::string::npos);
}

// The last in the ring is too small for the head, and the
// fastest, so that leaving out the slowest would not help.
TEST(Planner, AHostThatCannotHoldItsEndIsLeftOut) {
  const ModelSpec spec = spec_of(8);
  ClusterSpec cluster = cluster_of(3, 20 * kLayer);
  cluster.hosts[2].memory =
      kLayer + kOther + kEnd / 20;  // a layer, but not what a head on disk needs
  cluster.hosts[2].rates.memory *= 4;
  const PlanQuestion question = question_of(spec, cluster);
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_FALSE(plan.left_out.empty());
  EXPECT_EQ(plan.left_out[0].host, 2u);
  EXPECT_NE(plan.left_out[0].reason.find("end of the model"), std::string::npos);
}

TEST(Planner, MoreHostsThanLayersLeavesSomeOut) {
  const ModelSpec spec = spec_of(3);
  const PlanQuestion question = question_of(spec, cluster_of(6, 2 * kLayer));
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  EXPECT_LE(plan.hosts.size(), 3u);
}

TEST(Planner, WhatNoHostCanHoldIsRefused) {
  const ModelSpec spec = spec_of(8);
  const PlanQuestion question = question_of(spec, cluster_of(3, kLayer / 2));
  try {
    plan_cluster(question);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
    EXPECT_NE(std::string(error.what()).find("3 hosts cannot hold the model"), std::string::npos);
  }
}

// Any cluster gets a sound plan or a refusal; a faster or larger one is never worse.
TEST(Planner, RandomClustersGetSoundPlans) {
  std::mt19937 random(7);
  const auto between = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  int planned = 0;
  for (int trial = 0; trial < 60; ++trial) {
    const ModelSpec spec = spec_of(static_cast<std::int64_t>(between(2, 40)));
    ClusterSpec cluster;
    const int hosts = static_cast<int>(between(1, 7));
    for (int i = 0; i < hosts; ++i) {
      HostSpec one =
          host("h" + std::to_string(i), static_cast<std::int64_t>(between(0.3, 12) * kLayer));
      const double speed = between(0.2, 2);
      one.rates = {.memory = 40e9 * speed,
                   .f32 = 400e9 * speed,
                   .bf16 = 400e9 * speed,
                   .int8 = 800e9 * speed,
                   .disk = between(0.1e9, 4e9)};
      cluster.hosts.push_back(one);
    }
    PlanQuestion question = question_of(spec, cluster);
    question.sequences = static_cast<std::int64_t>(between(1, 9));
    try {
      expect_sound(question, plan_cluster(question));
      ++planned;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kResources);
    }
  }
  EXPECT_GT(planned, 30);
}

TEST(Planner, ManyHostsAreNoTrouble) {
  const ModelSpec spec = spec_of(96);
  ClusterSpec cluster = cluster_of(64, 3 * kLayer);
  for (std::size_t i = 0; i < cluster.hosts.size(); i += 3) cluster.hosts[i].memory = 2 * kLayer;
  const PlanQuestion question = question_of(spec, cluster);
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
}

// A GPU takes what it holds; with less memory than its share, the rest passes over its bus, or goes
// to others.
TEST(Planner, GpusTakeTheLayersThatTheyHold) {
  const ModelSpec spec = spec_of(24);
  ClusterSpec cluster = cluster_of(2, 100 * kLayer);
  HostSpec& gpu = cluster.hosts[1];
  // A driver rounds up the parts of layers, and the head's matrix.
  gpu.device_memory = kOther + kEnd + 10 * kLayer + (2 * 10 + 1) * kDeviceGranule;
  gpu.device = {.memory = 900e9, .halves = 70e12, .bus = 12e9};
  PlanQuestion question = question_of(spec, cluster);
  question.other_device_memory = [](const RankShape&) { return kOther; };
  question.cpu_layers = 0;
  const ClusterPlan plan = plan_cluster(question);
  expect_sound(question, plan);
  ASSERT_EQ(plan.hosts.size(), 2u);
  EXPECT_FALSE(plan.in_passes);
  EXPECT_FALSE(plan.hosts[0].device.has_value());
  ASSERT_TRUE(plan.hosts[1].device.has_value());
  EXPECT_EQ(plan.hosts[1].layers_on_device(), 10);
  EXPECT_EQ(plan.hosts[1].layers_on_cpu(), 0);
  EXPECT_LE(plan.hosts[1].device_memory, gpu.device_memory);
  EXPECT_EQ(plan.hosts[1].bus_seconds, 0);
  // Ten times the bandwidth: its layers cost a step little.
  EXPECT_LT(plan.hosts[1].step_seconds, plan.hosts[0].step_seconds / 4);
}

// It stands first, where the embedding goes: the host's memory would do.
TEST(Planner, AGpuThatIsTooSmallIsNamedAsSuch) {
  const ModelSpec spec = spec_of(8);
  ClusterSpec cluster = cluster_of(2, 100 * kLayer);
  HostSpec& gpu = cluster.hosts[0];
  gpu.device_memory = kLayer / 2;
  gpu.device = {.memory = 900e9, .halves = 70e12, .bus = 12e9};
  PlanQuestion question = question_of(spec, cluster);
  question.other_device_memory = [](const RankShape&) { return kOther; };
  question.cpu_layers = 0;
  const ClusterPlan plan = plan_cluster(question);
  ASSERT_EQ(plan.left_out.size(), 1u);
  EXPECT_NE(plan.left_out[0].reason.find("of its GPU's memory cannot hold"), std::string::npos)
      << plan.left_out[0].reason;
  question.cluster.hosts.pop_back();
  try {
    plan_cluster(question);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kResources);
    EXPECT_EQ(std::string(error.what()).find("device_memory is too small for the model"), 0u)
        << error.what();
  }
}

TEST(Planner, AGpuThatHoldsLittleIsBoundByItsBus) {
  const ModelSpec spec = spec_of(24);
  ClusterSpec cluster = cluster_of(1, 100 * kLayer);
  HostSpec& gpu = cluster.hosts[0];
  gpu.device_memory = kOther + 2 * kEnd + 4 * kLayer;
  gpu.device = {.memory = 900e9, .halves = 70e12, .bus = 12e9};
  PlanQuestion question = question_of(spec, cluster);
  question.other_device_memory = [](const RankShape&) { return kOther; };
  question.cpu_layers = 0;
  const ClusterPlan plan = plan_cluster(question);
  EXPECT_TRUE(plan.in_passes);
  EXPECT_EQ(plan.bound, Bound::kBus);
  EXPECT_GT(plan.hosts[0].device->streamed, 0);
  EXPECT_EQ(plan.hosts[0].residency.streamed, 0);  // all of it is in the host's memory
  EXPECT_NEAR(plan.step_seconds, plan.hosts[0].bus_seconds, 0.05 * plan.step_seconds);
}

// What does not fit on a GPU is read from the host's memory faster than it is copied: in decode.
TEST(Planner, TheProcessorComputesWhatItsGpuDoesNotHold) {
  const ModelSpec spec = spec_of(24);
  ClusterSpec cluster = cluster_of(1, 100 * kLayer);
  HostSpec& gpu = cluster.hosts[0];
  gpu.device_memory = kOther + 2 * kEnd + 4 * kLayer;
  gpu.device = {.memory = 900e9, .halves = 70e12, .bus = 12e9};
  gpu.rates.memory = 50e9;
  PlanQuestion question = question_of(spec, cluster);
  question.other_device_memory = [](const RankShape&) { return kOther; };
  question.prompt_tokens = 8;
  const ClusterPlan split = plan_cluster(question);
  expect_sound(question, split);
  EXPECT_GT(split.hosts[0].layers_on_cpu(), 15);
  EXPECT_EQ(split.hosts[0].layers_on_cpu() + split.hosts[0].layers_on_device() +
                std::count(split.hosts[0].residency.pinned.begin(),
                           split.hosts[0].residency.pinned.end(), true),
            24);
  question.cpu_layers = 0;
  const ClusterPlan alone = plan_cluster(question);
  EXPECT_LT(split.step_seconds, 0.4 * alone.step_seconds);
  // A prompt of many rows is the GPU's, and the job has little else.
  question.cpu_layers.reset();
  question.prompt_tokens = 2000;
  question.new_tokens = 1;
  const ClusterPlan prefill = plan_cluster(question);
  EXPECT_EQ(prefill.hosts[0].layers_on_cpu(), 0);
  EXPECT_TRUE(prefill.in_passes);
  // As many as the user says, in memory or in passes.
  for (const std::int64_t layers : {3, 20, 24}) {
    question.cpu_layers = layers;
    const ClusterPlan told = plan_cluster(question);
    EXPECT_EQ(told.hosts[0].layers_on_cpu(), layers);
    EXPECT_EQ(told.in_passes, layers < 20);
  }
}

}  // namespace
}  // namespace stagecoach
