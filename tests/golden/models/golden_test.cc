// Small random checkpoints against what Hugging Face transformers computes from them
// (scripts/make_golden.py), and against themselves: bit-identical for every split.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "checkpoint/import.h"
#include "checkpoint/safetensors/safetensors.h"
#include "engine/stage_runner.h"
#include "fixtures.h"
#include "support_gpu.h"
#include "support_pipeline.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    try {
      make_device(test_device(), 1, {});
    } catch (const Error& error) {
      if (!skips_gpu(error)) throw;
      GTEST_SKIP() << error.what();
    }
    const fs::path directory = golden_folder() / GetParam();
    const auto source = open_huggingface(directory);
    import_store(*source, folder_ / "store", {});
    store_.emplace(folder_ / "store");
    expected_ = read_json_file(directory / "golden.json", 1 << 24);
    values_.emplace(directory / "golden.safetensors");
    for (const Json& prompt : expected_["prompts"])
      prompts_.push_back(prompt.get<std::vector<std::int32_t>>());
  }

  std::vector<float> tensor(const std::string& name) const {
    const SafetensorsEntry& entry = values_->tensors().at(name);
    std::vector<float> values(static_cast<std::size_t>(entry.bytes) / sizeof(float));
    values_->file().read_at(entry.offset, std::as_writable_bytes(std::span(values)));
    return values;
  }
  double tolerance() const { return expected_["tolerance"].get<double>(); }

  // Every prompt generates greedily; with `score`, its text is scored too (as further requests).
  std::vector<PipelineRequest> requests(std::int64_t new_tokens, bool score) const {
    std::vector<PipelineRequest> all;
    for (const auto& prompt : prompts_)
      all.push_back({prompt, false, new_tokens, greedy_sampling()});
    if (score)
      for (const auto& prompt : prompts_) all.push_back({prompt, true, 0, {}});
    return all;
  }

  void expect_logits(const PipelineShape& shape) const;
  void expect_greedy_ids(const PipelineShape& shape) const;

  TemporaryFolder folder_;
  std::optional<LayerStore> store_;
  Json expected_;
  std::optional<SafetensorsFile> values_;
  std::vector<std::vector<std::int32_t>> prompts_;
};

void Golden::expect_logits(const PipelineShape& shape) const {
  const auto outputs = run_pipeline(*store_, shape, requests(1, true));
  const std::size_t n = prompts_.size();
  const auto vocab = static_cast<std::size_t>(store_->manifest().spec.vocab_size);
  for (std::size_t i = 0; i < n; ++i) {
    const std::vector<float> expected = tensor("logits." + std::to_string(i));
    auto rows = outputs[n + i].logits;  // all rows but the last, by scoring; the last by generating
    rows.insert(*outputs[i].logits.begin());
    ASSERT_EQ(rows.size() * vocab, expected.size());
    double worst = 0;
    for (const auto& [position, logits] : rows)
      for (std::size_t v = 0; v < vocab; ++v)
        worst = std::max<double>(
            worst, std::abs(logits[v] - expected[static_cast<std::size_t>(position) * vocab + v]));
    EXPECT_LE(worst, tolerance()) << "prompt " << i;
  }
}

void Golden::expect_greedy_ids(const PipelineShape& shape) const {
  const auto outputs = run_pipeline(
      *store_, shape, requests(static_cast<std::int64_t>(expected_["greedy"][0].size()), false));
  for (std::size_t i = 0; i < prompts_.size(); ++i)
    EXPECT_EQ(outputs[i].drawn, expected_["greedy"][i].get<std::vector<std::int32_t>>())
        << "prompt " << i;
}

TEST_P(Golden, LogitsAreWithinToleranceOfTransformers) {
  expect_logits({});
}

TEST_P(Golden, GreedyIdsAreTransformers) {
  expect_greedy_ids({});
}

// Layers of a processor beside those of a device, first, last and between them: with all others in
// the device's memory; and in rounds and passes, some passing through it from memory and disk.
TEST_P(Golden, LayersOfTheProcessorBesideADeviceAreTransformers) {
  if (test_device() == "cpu") GTEST_SKIP() << "needs a device beside the processor";
  const std::int64_t last = store_->manifest().spec.num_hidden_layers - 1;
  expect_logits({.micro_batch = 40, .cpu_layers = {0, 1, last}});
  expect_greedy_ids(
      {.ranks = 2, .rounds = 2, .micro_batch = 40, .streamed_layers = 99, .cpu_layers = {1, last}});
}

TEST_P(Golden, HiddenStatesOfEachLayerAreTransformers) {
  const ModelSpec& spec = store_->manifest().spec;
  const auto& prompt = prompts_[expected_["hidden_prompt"].get<std::size_t>()];
  const std::vector<float> expected = tensor("hidden");  // (layers + 1, tokens, hidden)
  const auto backend = make_device(test_device(), 1, {});
  Timeline timeline;
  DeviceWeights weights(
      *store_,
      all_in_memory({.layers = {{0, spec.num_hidden_layers}}, .embedding = true, .head = false}),
      *backend, timeline);
  StageRunner runner(spec, *backend, weights.source(), timeline,
                     {.max_rows = 64, .kv_type = KvType::kF32});
  runner.add_layers(0, spec.num_hidden_layers);
  const std::vector<TokenRun> runs{
      {.sequence = 0, .position = 0, .ids = prompt, .targets = {}, .sample = false}};
  const std::size_t size = prompt.size() * static_cast<std::size_t>(spec.hidden_size);
  std::vector<float> hidden(size);
  runner.embed(runs, {});
  // transformers applies the final norm to its last entry, so that the last layer is left to the
  // logits.
  for (std::int64_t layer = 0; layer < spec.num_hidden_layers; ++layer) {
    runner.get_hidden(hidden);
    const float* reference = expected.data() + static_cast<std::size_t>(layer) * size;
    double worst = 0, scale = 0;
    for (std::size_t i = 0; i < size; ++i) {
      worst = std::max<double>(worst, std::abs(hidden[i] - reference[i]));
      scale = std::max<double>(scale, std::abs(reference[i]));
    }
    // The fixture's own rule (golden.json, tolerance_note), with what has been added up by this
    // layer.
    const double bound = 4 * 0x1p-23 * std::sqrt(static_cast<double>(spec.hidden_size)) *
                         static_cast<double>(2 * layer + 1) * scale;
    EXPECT_LE(worst, bound) << "before layer " << layer;
    runner.run_layers(layer, layer + 1, runs, {});
  }
}

void expect_same_bits(const std::vector<PipelineOutput>& a, const std::vector<PipelineOutput>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].drawn, b[i].drawn) << "request " << i;
    EXPECT_EQ(a[i].log_probs, b[i].log_probs) << "request " << i;
    ASSERT_EQ(a[i].logits.size(), b[i].logits.size()) << "request " << i;
    for (const auto& [position, logits] : a[i].logits)
      ASSERT_TRUE(same_bits(logits, b[i].logits.at(position)))
          << "request " << i << ", position " << position;
  }
}

TEST_P(Golden, EverySplitGivesTheSameBits) {
  const auto all = requests(8, true);
  const auto reference = run_pipeline(*store_, {}, all);
  const std::vector<PipelineShape> shapes{
      {.ranks = 2},
      {.ranks = 3, .threads = 2},
      {.ranks = 4, .micro_batch = 32},
      {.threads = 2, .micro_batch = 7},
      {.ranks = 2, .rounds = 2, .micro_batch = 50},
      {.ranks = 4, .micro_batch = 1, .max_active = 2},
      {.ranks = 2, .micro_batch = 65, .windows = "0:1,1:5"},
  };
  for (const PipelineShape& shape : shapes) {
    SCOPED_TRACE(shape.name());
    expect_same_bits(reference, run_pipeline(*store_, shape, all));
  }
}

constexpr KvType kStoredTypes[] = {KvType::kF16, KvType::kQ8};

// Within a KV type, whatever its rounding: one position is written alike by prefill and decode.
TEST_P(Golden, EveryKvTypeGivesTheSameBitsForEverySplit) {
  const auto all = requests(8, true);
  const auto f32 = run_pipeline(*store_, {}, all);
  for (const KvType kv : kStoredTypes) {
    const auto reference = run_pipeline(*store_, {.kv = kv}, all);
    EXPECT_NE(reference.back().log_probs, f32.back().log_probs);
    for (const PipelineShape& shape : std::vector<PipelineShape>{
             {.ranks = 2, .kv = kv},
             {.ranks = 4, .micro_batch = 32, .kv = kv},
             {.threads = 2, .micro_batch = 7, .kv = kv},
             {.ranks = 4, .micro_batch = 1, .max_active = 2, .kv = kv},
             {.ranks = 2, .rounds = 2, .micro_batch = 40, .streamed_layers = 99, .kv = kv}}) {
      SCOPED_TRACE(shape.name());
      expect_same_bits(reference, run_pipeline(*store_, shape, all));
    }
  }
}

// Streamed through as little memory as there may be, or a little more; all layers or some; in one
// pass or in many; with the ends of the model on disk.
TEST_P(Golden, StreamedFromDiskGivesTheSameBits) {
  const auto all = requests(8, true);
  const auto reference = run_pipeline(*store_, {}, all);
  const std::vector<PipelineShape> shapes{
      {.streamed_layers = 99},
      {.ranks = 2, .threads = 2, .streamed_layers = 99, .attention_slots = 2, .mlp_slots = 2},
      {.ranks = 2, .rounds = 2, .micro_batch = 40, .streamed_layers = 99, .head_rows = 64},
      {.ranks = 3, .micro_batch = 33, .streamed_layers = 1, .attention_slots = 2},
      {.ranks = 2, .micro_batch = 7, .max_active = 2, .streamed_layers = 99, .pass_tokens = 50},
      {.micro_batch = 16, .windows = "0:2,2:3,3:5", .streamed_layers = 2, .pass_tokens = 90},
      {.ranks = 2, .rounds = 3, .micro_batch = 64, .streamed_layers = 99},
  };
  for (const PipelineShape& shape : shapes) {
    SCOPED_TRACE(shape.name());
    expect_same_bits(reference, run_pipeline(*store_, shape, all));
  }
}

// The same for a device whose products of many rows are a library's: equal batches then give equal
// bits, wherever the weights come from.
TEST_P(Golden, EqualBatchesGiveTheSameBitsFromAnyMemory) {
  const auto all = requests(3, true);
  const auto reference = run_pipeline(*store_, {.micro_batch = 40, .streamed_layers = 1}, all);
  for (const PipelineShape& shape : std::vector<PipelineShape>{
           {.ranks = 2, .micro_batch = 40, .streamed_layers = 99},
           {.micro_batch = 40, .streamed_layers = 99, .attention_slots = 2, .mlp_slots = 2}}) {
    SCOPED_TRACE(shape.name());
    expect_same_bits(reference, run_pipeline(*store_, shape, all));
  }
}

// A score job forgets each layer's keys as soon as its text has passed it.
TEST_P(Golden, StreamedScoresGiveTheSameBits) {
  for (const PipelineRequest& request : requests(1, true)) {
    if (!request.score) continue;
    const auto reference = run_pipeline(*store_, {}, {request});
    for (const PipelineShape& shape : std::vector<PipelineShape>{
             {.streamed_layers = 99},
             {.ranks = 2, .rounds = 2, .micro_batch = 32, .streamed_layers = 99},
             {.ranks = 2, .micro_batch = 11, .streamed_layers = 99, .head_rows = 5}}) {
      SCOPED_TRACE(shape.name());
      expect_same_bits(reference, run_pipeline(*store_, shape, {request}));
    }
  }
}

TEST_P(Golden, AloneAndAmongBatchMatesGiveTheSameBits) {
  const auto all = requests(6, true);
  const auto together = run_pipeline(*store_, {.ranks = 2}, all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    expect_same_bits({together[i]}, run_pipeline(*store_, {}, {all[i]}));
  }
}

TEST_P(Golden, PrefillAndDecodeGiveTheSameBits) {
  const auto& prompt = prompts_[1];
  for (const KvType kv : {KvType::kF32, KvType::kF16, KvType::kQ8}) {
    const auto decoded =
        run_pipeline(*store_, {.kv = kv}, {{prompt, false, 70, greedy_sampling()}}).front();
    std::vector<std::int32_t> whole = prompt;
    whole.insert(whole.end(), decoded.drawn.begin(), decoded.drawn.end());
    const PipelineShape two{.ranks = 2, .kv = kv};
    SCOPED_TRACE(two.name());
    const auto prefilled = run_pipeline(*store_, two, {{whole, true, 0, {}}}).front();
    for (const auto& [position, logits] : decoded.logits)
      ASSERT_TRUE(same_bits(logits, prefilled.logits.at(position))) << "position " << position;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Golden, testing::ValuesIn(fixtures()), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

}  // namespace
}  // namespace stagecoach
