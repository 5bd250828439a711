// Models that nobody made: any valid combination of axes is imported, split at random and compared
// with the textbook's forward pass.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "base/hash.h"
#include "checkpoint/import.h"
#include "plain_forward.h"
#include "stored_weights.h"
#include "support_pipeline.h"
#include "support_temporary_folder.h"

namespace stagecoach {
namespace {

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : generator_(seed) {}
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(generator_);
  }
  bool coin() { return between(0, 1) == 1; }
  float real(float low, float high) {
    return std::uniform_real_distribution<float>(low, high)(generator_);
  }

 private:
  std::mt19937_64 generator_;
};

void draw_positions(Draw& draw, ModelSpec& spec) {
  spec.position = static_cast<PositionKind>(draw.between(0, 2));
  if (spec.position == PositionKind::kRotary) {
    spec.rotary_dim = 2 * draw.between(1, std::max<std::int64_t>(spec.head_dim / 2, 1));
    for (std::int64_t i = 0; i < spec.rotary_dim / 2; ++i)
      spec.rotary_inv_freq.push_back(draw.real(0.001f, 1.0f));
  }
  for (std::int64_t i = 0; spec.position == PositionKind::kAlibi && i < spec.num_attention_heads;
       ++i)
    spec.alibi_slopes.push_back(draw.real(0.001f, 0.5f));
  if (draw.coin()) spec.sliding_window = draw.between(1, 80);
}

ModelSpec draw_spec(Draw& draw) {
  ModelSpec spec;
  spec.family = "random";
  spec.architecture = "RandomForCausalLM";
  spec.vocab_size = draw.between(2, 60);
  spec.hidden_size = draw.between(1, 50);
  spec.embedding_size = draw.between(0, 3) == 0 ? draw.between(1, 40) : spec.hidden_size;
  spec.intermediate_size = draw.between(1, 70);
  spec.num_hidden_layers = draw.between(1, 6);
  spec.num_key_value_heads = draw.between(1, 3);
  spec.num_attention_heads = spec.num_key_value_heads * draw.between(1, 3);
  spec.head_dim = draw.between(2, 20);
  spec.max_position_embeddings = 100;
  spec.norm = static_cast<NormAxis>(draw.between(0, 1));
  // A row of equal values has no variance at all: what remains of rounding must not be blown up.
  spec.norm_epsilon = 1e-2f;
  spec.norm_bias = draw.coin();
  spec.residual = static_cast<ResidualForm>(draw.between(0, 2));
  if (spec.residual == ResidualForm::kSequential)
    spec.norm_placement = static_cast<NormPlacement>(draw.between(0, 1));
  spec.embedding_norm = draw.coin();
  spec.final_norm = draw.coin();
  spec.attention_scale = 1.0f / std::sqrt(static_cast<float>(spec.head_dim));
  spec.query_key_norm = draw.coin();
  spec.query_bias = draw.coin();
  spec.key_bias = draw.coin();
  spec.value_bias = draw.coin();
  spec.attention_output_bias = draw.coin();
  spec.mlp = static_cast<MlpKind>(draw.between(0, 1));
  spec.activation = static_cast<ActivationKind>(draw.between(0, 3));
  spec.mlp_bias = draw.coin();
  spec.tied_head = draw.coin();
  spec.head_bias = draw.coin();
  draw_positions(draw, spec);
  spec.validate("a random spec");
  return spec;
}

// Values of every element from its own name, of a size that lets every tensor matter.
class HashedWeights : public WeightSource {
 public:
  HashedWeights(ModelSpec spec, std::uint64_t seed) : spec_(std::move(spec)), seed_(seed) {}

  const ModelSpec& spec() const override { return spec_; }
  DType native_type() const override { return DType::kF32; }
  std::string identity() const override { return fmt::format("hashed {}", seed_); }
  std::string default_name() const override { return "hashed"; }
  const std::map<std::string, std::string>& tokenizer_files() const override { return none_; }

  void read_rows(TensorRole role, std::int64_t layer, std::int64_t row_begin, std::int64_t row_end,
                 float* destination) override {
    const std::string_view name = role_name(role);
    const bool norm = name.ends_with("norm.weight"), bias = name.ends_with(".bias");
    const std::int64_t cols = columns(role);
    const float scale = norm || bias ? 0.3f : 1.5f / std::sqrt(static_cast<float>(cols));
    std::mt19937_64 generator(seed_ ^ xxh3(as_bytes(tensor_name(role, layer))));
    generator.discard(static_cast<std::uint64_t>(row_begin * cols));
    for (std::int64_t i = 0; i < (row_end - row_begin) * cols; ++i) {
      const auto unit = static_cast<float>(generator() >> 40) * 0x1p-23f - 1.0f;
      destination[i] = (norm ? 1.0f : 0.0f) + scale * unit;
    }
  }

 private:
  std::int64_t columns(TensorRole role) const {
    for (const SlabKind slab : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
      for (const TensorSpec& tensor : slab_tensors(spec_, slab, DType::kF32))
        if (tensor.role == role) return tensor.cols;
    throw std::logic_error("no such tensor");
  }

  ModelSpec spec_;
  std::uint64_t seed_;
  std::map<std::string, std::string> none_;
};

std::vector<std::int32_t> draw_tokens(Draw& draw, const ModelSpec& spec) {
  std::vector<std::int32_t> tokens;
  const std::int64_t count = draw.between(2, 99);
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(static_cast<std::int32_t>(draw.between(0, spec.vocab_size - 1)));
  return tokens;
}

PipelineShape draw_shape(Draw& draw, const ModelSpec& spec) {
  PipelineShape shape;
  shape.ranks =
      static_cast<int>(draw.between(1, std::min<std::int64_t>(4, spec.num_hidden_layers)));
  shape.threads = static_cast<int>(draw.between(1, 2));
  shape.micro_batch = draw.between(1, 120);
  return shape;
}

TEST(RandomSpecs, ForwardIsTheTextbooksOnAnySplit) {
  for (std::uint64_t seed = 1; seed <= 90; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Draw draw(seed);
    HashedWeights weights(draw_spec(draw), seed);
    const ModelSpec& spec = weights.spec();
    SCOPED_TRACE(to_json(spec).dump());
    const TemporaryFolder folder;
    // Quantising changes the weights, not the arithmetic: the textbook gets what the store holds.
    constexpr DType kTypes[] = {DType::kF32, DType::kQ8, DType::kQ4};
    StoredWeights stored(weights, kTypes[seed % 3]);
    import_store(weights, folder / "store", {.weights = stored.native_type()});
    const LayerStore store(folder / "store");
    const std::vector<std::int32_t> tokens = draw_tokens(draw, spec);

    const PipelineShape shape = draw_shape(draw, spec);
    SCOPED_TRACE(shape.name());
    const auto rows = run_pipeline(store, shape, {{tokens, true, 0, {}}}).front().logits;
    const std::vector<double> expected = plain_forward(stored, tokens);
    double scale = 1, worst = 0;
    for (const double logit : expected) scale = std::max(scale, std::abs(logit));
    const auto vocab = static_cast<std::size_t>(spec.vocab_size);
    ASSERT_EQ(rows.size(), tokens.size() - 1);
    for (const auto& [position, logits] : rows)
      for (std::size_t v = 0; v < vocab; ++v)
        worst = std::max(worst, std::abs(static_cast<double>(logits[v]) -
                                         expected[static_cast<std::size_t>(position) * vocab + v]));
    // The goldens' rule (scripts/make_golden.py), over the widest row that is summed.
    const auto width = static_cast<double>(std::max(spec.hidden_size, spec.intermediate_size));
    EXPECT_LE(worst, 8 * 0x1p-23 * std::sqrt(width) *
                         static_cast<double>(2 * spec.num_hidden_layers + 1) * scale);

    const auto whole = run_pipeline(store, {}, {{tokens, true, 0, {}}}).front().logits;
    EXPECT_EQ(rows, whole) << "a split changed bits";
  }
}

// Every family's preset, as `create` makes it; plain and quantised by turns.
TEST(RandomSpecs, PresetsGenerateTheSameOnAnySplit) {
  Draw draw(1);
  for (const auto& [name, spec] : presets()) {
    if (!name.starts_with("tiny-")) continue;
    SCOPED_TRACE(name);
    const TemporaryFolder folder;
    const auto source = open_random(name, 7);
    import_store(*source, folder / "store", {.weights = draw.coin() ? DType::kF16 : DType::kQ4});
    const LayerStore store(folder / "store");
    const std::vector<PipelineRequest> requests = {{draw_tokens(draw, spec), true, 0, {}},
                                                   {{1, 2, 3}, false, 20, greedy_sampling()}};
    const auto whole = run_pipeline(store, {}, requests);
    for (const int ranks : {2, 3, 4}) {
      const auto split = run_pipeline(store, {.ranks = ranks, .micro_batch = 7}, requests);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(split[i].drawn, whole[i].drawn);
        EXPECT_EQ(split[i].logits, whole[i].logits);
      }
    }
  }
}

}  // namespace
}  // namespace stagecoach
