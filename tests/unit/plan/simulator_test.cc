#include "plan/simulator.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/device_granule.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kLayer = 1'000'000'000;

// Hosts alike, whose layers take as long as their bytes take to be read from memory.
class SimulatorTest : public ::testing::Test {
 protected:
  SimulatorTest() {
    spec_.num_hidden_layers = 32;
    spec_.hidden_size = spec_.embedding_size = 1024;
    spec_.intermediate_size = 4096;
    spec_.num_attention_heads = spec_.num_key_value_heads = 16;
    spec_.head_dim = 64;
    spec_.vocab_size = 1000;
  }

  PlanQuestion ask(int hosts, std::int64_t memory) const {
    PlanQuestion question(spec_);
    question.layer_bytes = kLayer;
    for (int i = 0; i < hosts; ++i) {
      HostSpec host;
      host.name = "pc-" + std::to_string(i);
      host.memory = memory;
      host.rates = {.memory = 50e9, .f32 = 1e15, .bf16 = 1e15, .int8 = 1e15, .disk = 1e9};
      question.cluster.hosts.push_back(host);
    }
    question.slice_sizes = [](bool, bool) {
      return WeightSizes{.attention = kLayer / 4, .mlp = kLayer - kLayer / 4};
    };
    question.other_memory = [](const RankShape&) { return 0; };
    question.prompt_tokens = 64;
    question.new_tokens = 20;
    return question;
  }

  double layer_seconds() const { return CostModel(ask(1, kLayer)).layer(0, {}).seconds; }

  ModelSpec spec_;
};

TEST_F(SimulatorTest, OneHostTakesTheSumOfItsLayers) {
  const PlanQuestion question = ask(1, 40 * kLayer);
  const Simulation simulation = simulate(question, plan_cluster(question));
  EXPECT_NEAR(simulation.step_seconds, 32 * layer_seconds(), 0.01 * 32 * layer_seconds());
  EXPECT_EQ(simulation.micro_batches, 20);  // the prompt, and 19 steps
  EXPECT_NEAR(simulation.hosts[0].computing, 1, 1e-6);
  EXPECT_EQ(simulation.hosts[0].reading, 0);
}

// One sequence is on one host at a time, four are on all of them.
TEST_F(SimulatorTest, SequencesFillTheRing) {
  PlanQuestion question = ask(4, 8 * kLayer);
  const ClusterPlan plan = plan_cluster(question);
  ASSERT_EQ(plan.hosts.size(), 4u);
  const Simulation one = simulate(question, plan);
  EXPECT_NEAR(one.hosts[1].computing, 0.25, 0.03);
  question.sequences = 4;
  const Simulation four = simulate(question, plan);
  EXPECT_NEAR(four.tokens_per_second / one.tokens_per_second, 4, 0.3);
  EXPECT_GT(four.hosts[1].computing, 0.85);
}

// docs/staging.md: with one window a rank disks work one after the other, with many side by side.
TEST_F(SimulatorTest, RoundsLetDisksWorkSideBySide) {
  const PlanQuestion question = ask(4, 4 * kLayer);
  const ClusterPlan plan = plan_cluster(question);
  ASSERT_TRUE(plan.in_passes);
  ASSERT_GT(plan.rounds, 1);
  const Simulation many = simulate(question, plan);
  for (const SimulatedHost& host : many.hosts) EXPECT_GT(host.reading, 0.85);
  const double bound = streamed_bound(8.0 * kLayer, 4.0 * kLayer, 4, plan.rounds) / 1e9;
  EXPECT_GE(many.step_seconds, 0.95 * bound);
  EXPECT_LE(many.step_seconds, 1.4 * bound);
  EXPECT_NEAR(plan.step_seconds / many.step_seconds, 1, 0.15);
}

// Adding up and letting things wait come to nearly the same.
TEST_F(SimulatorTest, AgreesWithThePlanner) {
  for (const int hosts : {1, 2, 3, 5, 8})
    for (const std::int64_t memory : {3 * kLayer, 12 * kLayer, 40 * kLayer})
      for (const std::int64_t sequences : {1, 3, 8}) {
        SCOPED_TRACE(std::to_string(hosts) + " hosts, " + std::to_string(memory / kLayer) +
                     " layers of memory, " + std::to_string(sequences) + " sequences");
        PlanQuestion question = ask(hosts, memory);
        question.sequences = sequences;
        const ClusterPlan plan = plan_cluster(question);
        const Simulation simulation = simulate(question, plan);
        EXPECT_NEAR(plan.step_seconds / simulation.step_seconds, 1, 0.25);
        EXPECT_GT(simulation.time_to_first_token, 0);
        EXPECT_LE(simulation.time_to_first_token, simulation.seconds);
        // The first pass finds an empty ring.
        EXPECT_LE(plan.time_to_first_token, 1.1 * simulation.time_to_first_token);
        EXPECT_GE(plan.time_to_first_token, 0.5 * simulation.time_to_first_token);
      }
}

// Micro-batches of one prompt that are at a host at the same time keep their order.
TEST_F(SimulatorTest, APromptKeepsItsOrder) {
  PlanQuestion question = ask(4, 8 * kLayer);
  question.new_tokens = 1;
  const ClusterPlan plan = plan_cluster(question);
  ASSERT_EQ(plan.hosts.size(), 4u);
  const Simulation simulation = simulate(question, plan);
  EXPECT_EQ(simulation.micro_batches, 2);  // of 32 rows
  // The second follows the first: all layers, and once more a host's.
  EXPECT_GE(simulation.time_to_first_token, (32 + 8) * layer_seconds());
}

// Sequences that end while others still wait for their first token count for none of the rate after
// it.
TEST_F(SimulatorTest, TheRateIsThatOfWhatIsLeft) {
  PlanQuestion question = ask(1, 40 * kLayer);
  question.sequences = 64;
  question.prompt_tokens = 512;
  question.new_tokens = 4;
  const ClusterPlan plan = plan_cluster(question);
  const Simulation simulation = simulate(question, plan);
  EXPECT_LE(simulation.tokens_per_second, 64 / (32 * layer_seconds()));
  EXPECT_GT(simulation.tokens_per_second, 0);
}

TEST_F(SimulatorTest, StopsWhenInterrupted) {
  const PlanQuestion question = ask(1, 40 * kLayer);
  const ClusterPlan plan = plan_cluster(question);
  EXPECT_THROW(simulate(question, plan, [] { return true; }), Error);
}

// GPUs that hold some layers, and processors that compute none, some or all of the others.
TEST_F(SimulatorTest, AgreesWithThePlannerWhereProcessorsHelpGpus) {
  for (const int hosts : {1, 2, 3})
    for (const std::int64_t device : {3, 6, 12})
      for (const std::int64_t cpu_layers : {-1, 0, 2, 5}) {
        SCOPED_TRACE(std::to_string(hosts) + " hosts, " + std::to_string(device) +
                     " layers of a GPU, " + std::to_string(cpu_layers) + " on the processor");
        PlanQuestion question = ask(hosts, 40 * kLayer);
        for (HostSpec& host : question.cluster.hosts) {
          host.device_memory = device * (kLayer + 2 * kDeviceGranule);
          host.device = {.memory = 500e9, .halves = 50e12, .bus = 12e9};
        }
        question.other_device_memory = [](const RankShape&) { return 0; };
        if (cpu_layers >= 0) question.cpu_layers = cpu_layers;
        const ClusterPlan plan = plan_cluster(question);
        const Simulation simulation = simulate(question, plan);
        EXPECT_NEAR(plan.step_seconds / simulation.step_seconds, 1, 0.25);
        EXPECT_LE(plan.time_to_first_token, 1.1 * simulation.time_to_first_token);
      }
}

}  // namespace
}  // namespace stagecoach
