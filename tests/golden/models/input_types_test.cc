// Every family with packed activations: near the same store's results with float32 activations, and
// bit-identical for every split.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "backend/cpu/cpu_backend.h"
#include "base/dtype_names.h"
#include "base/json.h"
#include "checkpoint/import.h"
#include "fixtures.h"
#include "support_pipeline.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

struct Mode {
  DType weights;
  InputType input;
  // What rounding x costs a product, relative to its size. int8: uniform errors of up to half a
  // step, 1/127 of a group's largest, which is 2.4 standard deviations of 32 normal values on
  // average. bf16: up to 2⁻⁸ from a value between 1 and 2, 2⁻⁷ / √12 as a root mean square,
  // over 1.44.
  double error;
};

constexpr Mode kModes[] = {
    {DType::kQ8, InputType::kInt8, 0.0055},   {DType::kQ4, InputType::kInt8, 0.0055},
    {DType::kQ8, InputType::kBF16, 0.0016},   {DType::kQ4, InputType::kBF16, 0.0016},
    {DType::kBF16, InputType::kBF16, 0.0016}, {DType::kF16, InputType::kF32, 0.0016}};

class InputTypes : public testing::TestWithParam<std::string> {
 protected:
  template <typename Test>
  void for_each_mode(const Test& test) {
    const fs::path directory = golden_folder() / GetParam();
    const Json golden = read_json_file(directory / "golden.json", 1 << 24);
    std::vector<PipelineRequest> requests;
    for (const Json& prompt : golden["prompts"]) {
      const auto tokens = prompt.get<std::vector<std::int32_t>>();
      requests.push_back({tokens, false, 4, greedy_sampling()});
      requests.push_back({tokens, true, 0, {}});
    }
    const auto backend = make_cpu_backend({});
    for (const Mode& mode : kModes) {
      if (!backend->multiplies(mode.input, mode.weights)) continue;
      SCOPED_TRACE(std::string(dtype_name(mode.weights)) + ", input " +
                   std::to_string(static_cast<int>(mode.input)));
      const TemporaryFolder folder;
      import_store(*open_huggingface(directory), folder / "store", {.weights = mode.weights});
      test(LayerStore(folder / "store"), mode, requests);
    }
  }
};

// The stream is a sum of 2 L branches and the head reads it. A branch is two products deep, so its
// relative error is √2 e; they are independent, and norms bring their sum to the size of the
// logits. A softmax turns a score's error into as large a relative one of a weight, and scores of
// these checkpoints are up to four units large: hence a factor that stays below 5.
TEST_P(InputTypes, CostNoMoreThanRoundingExplains) {
  for_each_mode(
      [](const LayerStore& store, const Mode& mode, const std::vector<PipelineRequest>& requests) {
        const auto plain = run_pipeline(store, {}, requests);
        const auto packed = run_pipeline(store, {.packing = mode.input}, requests);
        double difference = 0, size = 0;
        for (std::size_t i = 1; i < plain.size(); i += 2)
          for (const auto& [position, logits] : plain[i].logits) {
            const std::vector<float>& other = packed[i].logits.at(position);
            double mean = 0;
            for (const float logit : logits) mean += logit;
            mean /= static_cast<double>(logits.size());
            for (std::size_t v = 0; v < logits.size(); ++v) {
              const double d = static_cast<double>(logits[v]) - static_cast<double>(other[v]);
              difference += d * d;
              size += (logits[v] - mean) * (logits[v] - mean);
            }
          }
        const auto layers = static_cast<double>(store.manifest().spec.num_hidden_layers);
        const double relative = std::sqrt(difference / size);
        EXPECT_LE(relative, 5 * mode.error * std::sqrt(4 * layers + 1));
        EXPECT_GT(relative, 0) << "nothing was packed";
      });
}

TEST_P(InputTypes, EverySplitGivesTheSameBits) {
  const std::vector<PipelineShape> shapes{
      {.ranks = 2, .micro_batch = 7, .max_active = 2},
      {.ranks = 3, .threads = 2, .micro_batch = 37},
      {.threads = 2, .micro_batch = 1, .max_active = 2},
      {.ranks = 2, .rounds = 2, .micro_batch = 33, .streamed_layers = 99},
  };
  for_each_mode(
      [&](const LayerStore& store, const Mode& mode, const std::vector<PipelineRequest>& requests) {
        const auto reference = run_pipeline(store, {.packing = mode.input}, requests);
        for (PipelineShape shape : shapes) {
          shape.packing = mode.input;
          SCOPED_TRACE(shape.name());
          const auto split = run_pipeline(store, shape, requests);
          for (std::size_t i = 0; i < requests.size(); ++i) {
            EXPECT_EQ(split[i].drawn, reference[i].drawn);
            for (const auto& [position, logits] : reference[i].logits)
              ASSERT_TRUE(same_bits(logits, split[i].logits.at(position)))
                  << "request " << i << ", position " << position;
          }
        }
      });
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, InputTypes, testing::ValuesIn(fixtures()),
                         [](const auto& test) {
                           std::string name = test.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace stagecoach
