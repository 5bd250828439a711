// What quantising costs a real model: the demo's distributions from q8 and q4 stores, and from keys
// and values kept as f16 and q8, against those from its own f16 with reference arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "checkpoint/import.h"
#include "stored_weights.h"
#include "support_ggml_types.h"
#include "support_pipeline.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

const std::filesystem::path kDemo = std::filesystem::path(TEST_DATA_DIR) / "demo-gptj";

using Rows = std::map<std::int64_t, std::vector<float>>;

std::vector<double> log_softmax(const std::vector<float>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  std::vector<double> result;
  for (const float logit : logits)
    result.push_back(static_cast<double>(logit) - largest - std::log(sum));
  return result;
}

// Mean over positions of KL(p || q), in nats a token.
double divergence(const Rows& exact, const Rows& quantized) {
  double sum = 0;
  for (const auto& [position, logits] : exact) {
    const auto p = log_softmax(logits), q = log_softmax(quantized.at(position));
    for (std::size_t i = 0; i < p.size(); ++i) sum += std::exp(p[i]) * (p[i] - q[i]);
  }
  return sum / static_cast<double>(exact.size());
}

// Mean over positions of the logits' standard deviation.
double spread(const Rows& rows) {
  double sum = 0;
  for (const auto& [position, logits] : rows) {
    double mean = 0, square = 0;
    for (const float logit : logits) mean += logit;
    mean /= static_cast<double>(logits.size());
    for (const float logit : logits) square += (logit - mean) * (logit - mean);
    sum += std::sqrt(square / static_cast<double>(logits.size()));
  }
  return sum / static_cast<double>(rows.size());
}

Rows score(DType weights, const std::vector<std::int32_t>& tokens, KvType kv = KvType::kF32) {
  const TemporaryFolder folder;
  const auto source = open_huggingface(kDemo);
  import_store(*source, folder / "store", {.weights = weights});
  return run_pipeline(LayerStore(folder / "store"), {.kv = kv}, {{tokens, true, 0, {}}})
      .front()
      .logits;
}

// The stream is a sum of branches, each two products deep, and the head reads it: three independent
// relative errors e in a row, so noise of variance σ² = 3 e² s² where s is the logits' spread. To
// second order noise of the logits costs a divergence of σ² / 2. e is what rounding costs normal
// weights in groups of 32 (tests/conformance/kernels/quantize_test.cc).
TEST(Quantized, DemoDivergesNoMoreThanItsRoundingErrorsExplain) {
  const Json golden = read_json_file(kDemo / "golden.json", 1 << 24);
  const auto tokens = golden["score"][0]["ids"].get<std::vector<std::int32_t>>();
  const Rows exact = score(DType::kF16, tokens);
  const double s = spread(exact);
  const auto bound = [&](double e) { return 3 * e * e * s * s / 2; };
  const double q8 = divergence(exact, score(DType::kQ8, tokens));
  const double q4 = divergence(exact, score(DType::kQ4, tokens));
  RecordProperty("q8", std::to_string(q8));
  RecordProperty("q4", std::to_string(q4));
  EXPECT_GT(q4, q8);
  EXPECT_LE(q8, bound(0.0055)) << s;
  EXPECT_LE(q4, bound(0.0855)) << s;
}

// Of a layer's branches only the attention reads the cache: its output errs by the values' relative
// error e, and as much again by what the keys' errors do to the weights, a score being of a size of
// 1 or so where a weight is undecided. So σ² = 2 e² s², and σ² / 2 as above. e is an error uniform
// within half a step: ±2⁻¹¹ of an element in f16; in q8 ±m / 254, where the largest m of 32 normal
// values is about 2 standard deviations.
TEST(Quantized, DemoDivergesNoMoreThanItsCachesRoundingExplains) {
  const Json golden = read_json_file(kDemo / "golden.json", 1 << 24);
  const auto tokens = golden["score"][0]["ids"].get<std::vector<std::int32_t>>();
  const Rows exact = score(DType::kF16, tokens);
  const double s = spread(exact);
  const auto bound = [&](double e) { return e * e * s * s; };
  const double f16 = divergence(exact, score(DType::kF16, tokens, KvType::kF16));
  const double q8 = divergence(exact, score(DType::kF16, tokens, KvType::kQ8));
  RecordProperty("f16", std::to_string(f16 * 1e9) + "e-9");
  RecordProperty("q8", std::to_string(q8 * 1e6) + "e-6");
  EXPECT_GT(q8, f16);
  EXPECT_LE(f16, bound(0x1p-11 / std::sqrt(3.0))) << s;
  EXPECT_LE(q8, bound(2.0 / 254 / std::sqrt(3.0))) << s;
}

double squared_error(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return sum;
}

TEST(Quantized, DemoWeightsErrLessInQ4ThanInGgufsQ4_0) {
  const auto source = open_huggingface(kDemo);
  StoredWeights stored(*source, DType::kQ4);
  double q4 = 0, q4_0 = 0;
  for (const TensorSpec& tensor : slab_tensors(source->spec(), SlabKind::kLayer, DType::kQ4))
    for (std::int64_t layer = 0; is_quantized(tensor.type) && layer < 7; ++layer) {
      std::vector<float> plain(static_cast<std::size_t>(tensor.rows * tensor.cols)), held = plain;
      source->read_rows(tensor.role, layer, 0, tensor.rows, plain.data());
      stored.read_rows(tensor.role, layer, 0, tensor.rows, held.data());
      const double ours = squared_error(plain, held);
      const double theirs = squared_error(plain, plain_q4_0(plain));
      EXPECT_LT(ours, theirs) << tensor_name(tensor.role, layer);
      q4 += ours;
      q4_0 += theirs;
    }
  RecordProperty("q4_of_q4_0", std::to_string(std::sqrt(q4 / q4_0)));
}

}  // namespace
}  // namespace stagecoach
