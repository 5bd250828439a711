#include "pipeline/rank_loop.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <map>
#include <random>

#include "backend/cpu/cpu_backend.h"
#include "base/aligned_buffer.h"
#include "base/error.h"
#include "pipeline/text_batches.h"
#include "ranks.h"

namespace stagecoach {
namespace {

ModelSpec tiny_spec() {
  ModelSpec spec;
  spec.vocab_size = 40;
  spec.hidden_size = spec.embedding_size = 16;
  spec.intermediate_size = 24;
  spec.num_hidden_layers = 6;
  spec.num_attention_heads = spec.num_key_value_heads = 2;
  spec.head_dim = 8;
  spec.max_position_embeddings = 100;
  spec.attention_scale = 0.35f;
  spec.validate("tiny");
  return spec;
}

// Random weights, the same on every rank; layer `broken` cannot be read.
class TinyWeights : public LayerSource {
 public:
  explicit TinyWeights(const ModelSpec& spec, std::int64_t broken = -1) : broken_(broken) {
    add(spec, SlabKind::kEmbedding, 0);
    for (std::int64_t layer = 0; layer < spec.num_hidden_layers; ++layer)
      add(spec, SlabKind::kLayer, layer);
    add(spec, SlabKind::kHead, 0);
  }
  LayerLease lease(std::int64_t layer, PartKind part, NextUse) override {
    if (layer == broken_ && part == PartKind::kMlp)
      throw data_error(fmt::format("layer {} is damaged", layer));
    return {parts_.at({layer, part}), nullptr};
  }
  LayerLease lease_ends(PartKind part) override { return {parts_.at({0, part}), nullptr}; }
  void gather(TensorRole table, std::span<const std::int32_t> ids, const UseRows& use) override {
    use(0, parts_.at({0, PartKind::kEmbedding})[table], ids);
  }
  void head_matrix(const UseTile& use) override {
    const PartTensors& tied = parts_.at({0, PartKind::kEmbedding});
    const TensorView& head = parts_.at({0, PartKind::kHead})[TensorRole::kHead];
    use(0, head ? head : tied[TensorRole::kTokenEmbedding]);
  }

 private:
  void add(const ModelSpec& spec, SlabKind slab, std::int64_t layer) {
    for (const TensorSpec& tensor : slab_tensors(spec, slab, DType::kF32)) {
      std::vector<float> values(static_cast<std::size_t>(tensor.rows * tensor.cols));
      std::normal_distribution<float> normal(tensor.is_vector() ? 1.0f : 0.0f, 0.3f);
      for (float& value : values) value = normal(random_);
      AlignedBuffer& packed = memory_.emplace_back(tensor.bytes());
      pack_rows(tensor.layout, tensor.type, values.data(), tensor.rows, tensor.cols, packed.data());
      parts_[{layer, tensor.part}].views[static_cast<int>(tensor.role)] = {
          packed.data(), tensor.type, tensor.layout, tensor.rows, tensor.cols};
    }
  }

  std::int64_t broken_;
  std::mt19937 random_{7};
  std::deque<AlignedBuffer> memory_;
  std::map<std::pair<std::int64_t, PartKind>, PartTensors> parts_;
};

struct Run {
  int ranks = 1, rounds = 1;
  std::int64_t broken_layer = -1;
  bool interrupt_after_first_token = false;
};

struct Outcome {
  std::map<SequenceId, std::vector<TokenId>> tokens;
  std::vector<std::exception_ptr> thrown;
};

Outcome run(const Run& job) {
  const ModelSpec spec = tiny_spec();
  const StagePlan plan =
      balanced_plan({.layer_bytes = 1}, 0, spec.num_hidden_layers, job.ranks, job.rounds);
  Outcome outcome;
  outcome.thrown = run_ranks(job.ranks, [&](Transport& transport) {
    const auto backend = make_cpu_backend({.threads = 1, .isa = {}});
    TinyWeights weights(spec, job.broken_layer);
    Timeline timeline;
    StageRunner runner(spec, *backend, weights, timeline, {.max_rows = 8, .kv_type = KvType::kF32});
    std::atomic<bool> interrupted{false};
    const RankContext context{.spec = spec,
                              .plan = plan,
                              .runner = runner,
                              .transport = transport,
                              .timeline = timeline,
                              .wire = WireType::kF32,
                              .has_head = true,
                              .interrupted = &interrupted,
                              .observe_logits = nullptr};
    if (transport.rank() > 0) return run_other_rank(context);
    std::vector<TextRequest> requests;
    SamplingParams sampling;
    sampling.repetition_penalty = 1.2;
    for (SequenceId id = 0; id < 7; ++id)
      requests.push_back({.sequence = id,
                          .tokens = std::vector<TokenId>(static_cast<std::size_t>(1 + 5 * id),
                                                         static_cast<TokenId>(id)),
                          .score = false,
                          .max_new_tokens = 1 + id % 4,
                          .sampling = sampling});
    TextEvents events;
    events.token = [&](SequenceId id, TokenId token) {
      outcome.tokens[id].push_back(token);
      if (job.interrupt_after_first_token) interrupted = true;
      return true;
    };
    TextBatches batches({.micro_batch_tokens = 8, .depth = job.ranks, .max_active = 3},
                        spec.max_position_embeddings, requests, events);
    run_rank_zero(context, batches);
    EXPECT_TRUE(batches.done());
  });
  return outcome;
}

ErrorKind kind_of(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    return error.kind();
  }
}

TEST(RankLoop, TextDoesNotDependOnRanksAndRounds) {
  const Outcome alone = run({});
  ASSERT_FALSE(alone.thrown[0]);
  ASSERT_EQ(alone.tokens.size(), 7U);
  for (const auto& [id, tokens] : alone.tokens)
    EXPECT_EQ(static_cast<std::int64_t>(tokens.size()), 1 + id % 4);
  for (const auto& [ranks, rounds] : {std::pair{1, 3}, {2, 1}, {2, 3}, {3, 1}, {3, 2}, {6, 1}}) {
    const Outcome split = run({.ranks = ranks, .rounds = rounds});
    for (const auto& thrown : split.thrown) EXPECT_FALSE(thrown);
    EXPECT_EQ(split.tokens, alone.tokens) << ranks << " ranks, " << rounds << " rounds";
  }
}

TEST(RankLoop, AnErrorOfOneRankEndsAllAndIsItsOwn) {
  for (int rounds : {1, 2}) {
    for (std::int64_t layer = 0; layer < 6; ++layer) {
      const Outcome outcome = run({.ranks = 3, .rounds = rounds, .broken_layer = layer});
      const int culprit = static_cast<int>(rounds == 1 ? layer / 2 : layer % 3);
      for (int r = 0; r < 3; ++r) {
        const auto& thrown = outcome.thrown[static_cast<std::size_t>(r)];
        ASSERT_TRUE(thrown) << "rank " << r;
        EXPECT_EQ(kind_of(thrown), r == culprit ? ErrorKind::kData : ErrorKind::kPeerLost)
            << "rank " << r;
      }
    }
  }
}

TEST(RankLoop, AnInterruptEndsRankZeroAtTheNextMicroBatch) {
  const Outcome outcome = run({.ranks = 2, .interrupt_after_first_token = true});
  ASSERT_TRUE(outcome.thrown[0]);
  EXPECT_EQ(kind_of(outcome.thrown[0]), ErrorKind::kInterrupted);
  ASSERT_TRUE(outcome.thrown[1]);
  EXPECT_EQ(kind_of(outcome.thrown[1]), ErrorKind::kPeerLost);
  EXPECT_LT(outcome.tokens.size(), 7U);
}

// Rank 1 of 2 gets `batch` from a rank 0 that is us.
void expect_refused_by_rank_one(const MicroBatch& batch) {
  const ModelSpec spec = tiny_spec();
  const StagePlan plan = balanced_plan({.layer_bytes = 1}, 0, spec.num_hidden_layers, 2, 1);
  const auto thrown = run_ranks(2, [&](Transport& transport) {
    if (transport.rank() == 0) {
      const std::vector<float> hidden(
          static_cast<std::size_t>(total_rows(batch.runs) * spec.hidden_size));
      transport.send(1, Channel::kData,
                     encode_micro_batch(batch, hidden, spec.hidden_size, WireType::kF32));
      return;
    }
    const auto backend = make_cpu_backend({.threads = 1, .isa = {}});
    TinyWeights weights(spec);
    Timeline timeline;
    StageRunner runner(spec, *backend, weights, timeline, {.max_rows = 8, .kv_type = KvType::kF32});
    run_other_rank({.spec = spec,
                    .plan = plan,
                    .runner = runner,
                    .transport = transport,
                    .timeline = timeline,
                    .wire = WireType::kF32,
                    .has_head = true,
                    .interrupted = nullptr,
                    .observe_logits = nullptr});
  });
  ASSERT_TRUE(thrown[1]);
  EXPECT_EQ(kind_of(thrown[1]), ErrorKind::kData);
}

TEST(RankLoop, MicroBatchesThatDoNotFitAreRefused) {
  MicroBatch batch;
  batch.window = 1;
  batch.runs = {{.sequence = 0, .position = 0, .ids = {1, 2}, .targets = {}, .sample = true}};
  const auto with = [&](auto change) {
    MicroBatch changed = batch;
    change(changed);
    expect_refused_by_rank_one(changed);
  };
  with([](MicroBatch& b) { b.window = 0; });
  with([](MicroBatch& b) { b.window = 2; });
  with([](MicroBatch& b) { b.runs[0].ids[1] = 40; });
  with([](MicroBatch& b) { b.runs[0].targets = {3, 40}; });
  with([](MicroBatch& b) { b.runs[0].position = 99; });
}

}  // namespace
}  // namespace stagecoach
