#include "plan/cost_model.h"

#include <gtest/gtest.h>

#include "plan/planner.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kLayer = 100'000'000, kHead = 50'000'000;
constexpr double kMemory = 10e9;

// One host, so fast at arithmetic that only reading counts.
class CostModelTest : public ::testing::Test {
 protected:
  CostModelTest() {
    spec_.num_hidden_layers = 4;
    spec_.hidden_size = spec_.embedding_size = 1024;
    spec_.intermediate_size = 4096;
    spec_.num_attention_heads = spec_.num_key_value_heads = 16;
    spec_.head_dim = 64;
    spec_.vocab_size = 1000;
    question_.layer_bytes = kLayer;
    question_.head_bytes = kHead;
    question_.kv_bytes = 4096;
    question_.head_rows = 16;
    question_.head_rows_in_passes = 64;
    question_.prompt_tokens = 1000;
    question_.new_tokens = 100;
    HostSpec host;
    host.name = "pc";
    host.memory = 10 * kLayer;
    host.rates = {.memory = kMemory, .f32 = 1e18, .bf16 = 1e18, .int8 = 1e18, .disk = 1e9};
    question_.cluster.hosts = {host};
    question_.slice_sizes = [](bool, bool head) {
      WeightSizes sizes{.attention = kLayer / 4, .mlp = kLayer - kLayer / 4};
      if (head) sizes.head_in_memory = sizes.head_on_disk = sizes.head_matrix = kHead;
      return sizes;
    };
    question_.other_memory = [](const RankShape&) { return 0; };
  }

  ModelSpec spec_;
  PlanQuestion question_{spec_};
};

TEST_F(CostModelTest, AStepReadsTheKeysAndValuesOfEachSequence) {
  const CostModel costs(question_);
  const auto kv = static_cast<double>(question_.step_context() * question_.kv_bytes);
  const double one = costs.layer(0, costs.step_rows(1)).seconds,
               eight = costs.layer(0, costs.step_rows(8)).seconds;
  EXPECT_NEAR(eight - one, 7 * kv / (0.9 * kMemory), 1e-9);
  question_.kv_bytes = 0;
  EXPECT_NEAR(one - costs.layer(0, costs.step_rows(1)).seconds, kv / (0.9 * kMemory), 1e-9);
}

TEST_F(CostModelTest, RowsOfOnePromptReadThemOnce) {
  const CostModel costs(question_);
  EXPECT_EQ(costs.layer(0, costs.prompt_rows(200)).seconds,
            costs.layer(0, costs.prompt_rows(1000)).seconds);
  const auto kv = static_cast<double>(question_.prompt_context() * question_.kv_bytes);
  EXPECT_NEAR(costs.layer(0, costs.prompt_rows(2000)).seconds -
                  costs.layer(0, costs.prompt_rows(1000)).seconds,
              kv / (0.9 * kMemory), 1e-9);
}

TEST_F(CostModelTest, AGpuReadsThemFromItsOwnMemory) {
  HostSpec& host = question_.cluster.hosts[0];
  host.device_memory = 10 * kLayer;
  host.device = {.memory = 100e9, .halves = 1e15, .bus = 10e9};
  const CostModel costs(question_);
  const auto kv = static_cast<double>(question_.step_context() * question_.kv_bytes);
  EXPECT_NEAR(
      costs.layer(0, costs.step_rows(8)).seconds - costs.layer(0, costs.step_rows(1)).seconds,
      7 * kv / (0.85 * 100e9), 1e-9);
}

TEST_F(CostModelTest, TheHeadIsReadForSoManyRowsAtATime) {
  const CostModel costs(question_);
  const double once = kHead / (0.9 * kMemory);
  EXPECT_NEAR(costs.head(0, 16, false).seconds, once, 1e-9);
  EXPECT_NEAR(costs.head(0, 17, false).seconds, 2 * once, 1e-9);
  EXPECT_NEAR(costs.head(0, 64, true).seconds, once, 1e-9);
  EXPECT_NEAR(costs.head_read_seconds(0, 65), 2 * kHead / 1e9, 1e-9);
}

TEST_F(CostModelTest, APlanSaysWhatLongTextsCost) {
  question_.sequences = 8;
  const double with = plan_cluster(question_).step_seconds;
  question_.kv_bytes = 0;
  const double without = plan_cluster(question_).step_seconds;
  const double kv = static_cast<double>(4 * 8 * question_.step_context() * 4096) / (0.9 * kMemory);
  EXPECT_NEAR(with - without, kv, 0.01 * kv);
}

}  // namespace
}  // namespace stagecoach
