// Hidden states from one device's memory to another's, over a transport that reads and writes there
// in no order with the ranks' ops.
#include <gtest/gtest.h>

#include <optional>
#include <utility>
#include <vector>

#include "checkpoint/import.h"
#include "engine/stage_runner.h"
#include "golden/models/fixtures.h"
#include "pipeline/rank_loop.h"
#include "support_pipeline.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

class DeviceMessagesTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto source =
        open_huggingface(std::filesystem::path(TEST_DATA_DIR) / "golden/llama-gqa-f32");
    import_store(*source, folder_ / "store", {});
    store_.emplace(folder_ / "store");
  }

  // Prompts of several micro-batches, generated from and scored.
  std::vector<PipelineRequest> requests() const {
    std::vector<PipelineRequest> all;
    const auto vocab = static_cast<std::int32_t>(store_->manifest().spec.vocab_size);
    for (std::int32_t i = 0; i < 3; ++i) {
      std::vector<std::int32_t> tokens;
      for (std::int32_t t = 0; t < 11 + i; ++t) tokens.push_back((7 * t + 13 * i + 1) % vocab);
      all.push_back({tokens, i == 2, i == 2 ? 0 : 3, greedy_sampling()});
    }
    return all;
  }

  // In the bits of the same job through the host's memory; what went which way.
  std::pair<int, int> expect_same_bits(PipelineShape shape,
                                       const std::vector<PipelineRequest>& requests) {
    SCOPED_TRACE(shape.name());
    const auto expected = run_pipeline(*store_, shape, requests);
    DeviceTraffic traffic;
    shape.device_messages = &traffic;
    const auto found = run_pipeline(*store_, shape, requests);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(found[i].drawn, expected[i].drawn) << "request " << i;
      EXPECT_EQ(found[i].log_probs, expected[i].log_probs) << "request " << i;
      for (const auto& [position, logits] : expected[i].logits)
        EXPECT_TRUE(same_bits(logits, found[i].logits.at(position)))
            << "request " << i << ", position " << position;
    }
    return {traffic.sent, traffic.landed};
  }

  TemporaryFolder folder_;
  std::optional<LayerStore> store_;
};

// Others write into the memory as soon as it is given back.
TEST_F(DeviceMessagesTest, MemoryIsGivenBackWhenItsRowsAreCopied) {
  const ModelSpec& spec = store_->manifest().spec;
  const auto backend = make_device("cuda", 1, {});
  Timeline timeline;
  DeviceWeights weights(*store_, all_in_memory({.layers = {}, .embedding = true, .head = false}),
                        *backend, timeline);
  StageRunner runner(spec, *backend, weights.source(), timeline, {.max_rows = 2});
  const auto pieces = runner.make_device_rows(2);
  const std::size_t bytes = 2 * static_cast<std::size_t>(spec.hidden_size) * sizeof(float);
  EXPECT_EQ(pieces->take(bytes + 1), nullptr);
  auto arrived = pieces->take(bytes), leaving = pieces->take(bytes);
  ASSERT_NE(arrived, nullptr);
  ASSERT_NE(leaving, nullptr);
  EXPECT_EQ(pieces->take(1), nullptr) << "both are taken";

  std::vector<float> rows(bytes / sizeof(float)), found(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
  const auto other = make_device("cuda", 1, {});  // no stream of the runner's
  other->upload(arrived.get(), std::as_bytes(std::span(rows)));
  other->synchronize();
  runner.set_device_hidden(std::exchange(arrived, nullptr), bytes);
  EXPECT_EQ(pieces->take(1), nullptr) << "it may not be copied yet";
  EXPECT_TRUE(runner.hidden_on_device());
  runner.get_device_hidden(leaving.get(), bytes);
  other->download(std::as_writable_bytes(std::span(found)), leaving.get());
  EXPECT_EQ(found, rows);
  runner.host_rows_are_free();
  EXPECT_NE(pieces->take(bytes), nullptr);
}

// Others write there as soon as they may, in no order with the ops that have cleared it.
TEST_F(DeviceMessagesTest, MemoryIsClearedBeforeItIsLent) {
  const auto backend = make_device("cuda", 1, {}), other = make_device("cuda", 1, {});
  for (int i = 0; i < 20; ++i) {
    std::vector<std::byte> written(4096, std::byte{1}), found(written.size());
    DeviceRows pieces(*backend, 1, static_cast<std::int64_t>(written.size()));
    const auto piece = pieces.take(written.size());
    other->upload(piece.get(), written);
    other->synchronize();
    backend->synchronize();
    other->download(found, piece.get());
    ASSERT_EQ(found, written);
  }
}

// In passes, where equal batches are sure. A rank sends all micro-batches of one before it waits.
TEST_F(DeviceMessagesTest, GiveTheBitsOfMessagesThroughTheHost) {
  const auto [sent, landed] = expect_same_bits(
      {.ranks = 2, .micro_batch = 12, .streamed_layers = 1, .device = "cuda"}, requests());
  EXPECT_GT(sent, kDeviceRows);
  EXPECT_EQ(landed, sent);
}

TEST_F(DeviceMessagesTest, WithMoreThanTheirMemoryGoThroughTheHost) {
  const auto [sent, landed] = expect_same_bits(
      {.ranks = 2, .micro_batch = 3, .streamed_layers = 1, .device = "cuda"}, {requests().back()});
  EXPECT_EQ(sent, kDeviceRows) << "of five, all sent before the first has left";
  EXPECT_EQ(landed, sent);
}

TEST_F(DeviceMessagesTest, InRoundsAndBesideLayersOfTheProcessor) {
  const auto [sent, landed] = expect_same_bits(
      {.ranks = 2, .rounds = 2, .micro_batch = 12, .streamed_layers = 99, .device = "cuda"},
      requests());
  EXPECT_GT(landed, 0);
  const std::int64_t last = store_->manifest().spec.num_hidden_layers - 1;
  expect_same_bits({.ranks = 2,
                    .micro_batch = 40,
                    .streamed_layers = 99,
                    .device = "cuda",
                    .cpu_layers = {1, last}},
                   requests());
}

}  // namespace
}  // namespace stagecoach
