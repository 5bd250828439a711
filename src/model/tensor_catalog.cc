#include "model/tensor_catalog.h"

#include <array>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::array<std::string_view, kTensorRoles> kRoleNames{
    "token_embedding.weight",
    "embedding_projection.weight",
    "position_embedding.weight",
    "embedding_norm.weight",
    "embedding_norm.bias",
    "attention_norm.weight",
    "attention_norm.bias",
    "q_proj.weight",
    "q_proj.bias",
    "k_proj.weight",
    "k_proj.bias",
    "v_proj.weight",
    "v_proj.bias",
    "q_norm.weight",
    "k_norm.weight",
    "o_proj.weight",
    "o_proj.bias",
    "mlp_norm.weight",
    "mlp_norm.bias",
    "gate_proj.weight",
    "gate_proj.bias",
    "up_proj.weight",
    "up_proj.bias",
    "down_proj.weight",
    "down_proj.bias",
    "final_norm.weight",
    "final_norm.bias",
    "head_projection.weight",
    "head.weight",
    "head.bias",
};

constexpr std::array<std::string_view, 4> kPartNames{"embedding", "attention", "mlp", "head"};

// Collects the tensors of one slab in storage order.
class CatalogBuilder {
 public:
  explicit CatalogBuilder(DType weights) : weights_(weights) {}

  void part(PartKind part) { part_ = part; }
  void norm(TensorRole weight, TensorRole bias, const ModelSpec& spec) {
    vector(weight, spec.hidden_size);
    vector_if(spec.norm_bias, bias, spec.hidden_size);
  }
  void vector(TensorRole role, std::int64_t size) {
    tensors_.push_back({role, part_, 1, size, Layout::kRows, DType::kF32});
  }
  void vector_if(bool present, TensorRole role, std::int64_t size) {
    if (present) vector(role, size);
  }
  void table(TensorRole role, std::int64_t rows, std::int64_t cols) {
    tensors_.push_back({role, part_, rows, cols, Layout::kRows, table_type(weights_)});
  }
  void matrix(TensorRole role, std::int64_t rows, std::int64_t cols) {
    tensors_.push_back({role, part_, rows, cols, matrix_layout(weights_), weights_});
  }
  std::vector<TensorSpec> take() { return std::move(tensors_); }

 private:
  DType weights_;
  PartKind part_ = PartKind::kEmbedding;
  std::vector<TensorSpec> tensors_;
};

void add_attention(CatalogBuilder& add, const ModelSpec& spec) {
  using enum TensorRole;
  const std::int64_t hidden = spec.hidden_size, q = spec.query_size(), kv = spec.key_value_size();
  add.part(PartKind::kAttention);
  add.norm(kAttentionNorm, kAttentionNormBias, spec);
  add.matrix(kQuery, q, hidden);
  add.vector_if(spec.query_bias, kQueryBias, q);
  add.matrix(kKey, kv, hidden);
  add.vector_if(spec.key_bias, kKeyBias, kv);
  add.matrix(kValue, kv, hidden);
  add.vector_if(spec.value_bias, kValueBias, kv);
  add.vector_if(spec.query_key_norm, kQueryNorm, spec.head_dim);
  add.vector_if(spec.query_key_norm, kKeyNorm, spec.head_dim);
  // The MLP of a parallel block reads x as it was before the attention was added to it: its norm
  // is taken with the attention's part.
  if (spec.residual == ResidualForm::kParallelTwoNorms) add.norm(kMlpNorm, kMlpNormBias, spec);
  add.matrix(kAttentionOutput, hidden, q);
  add.vector_if(spec.attention_output_bias, kAttentionOutputBias, hidden);
}

void add_mlp(CatalogBuilder& add, const ModelSpec& spec) {
  using enum TensorRole;
  const std::int64_t hidden = spec.hidden_size, inner = spec.intermediate_size;
  const bool gated = spec.mlp == MlpKind::kGated;
  add.part(PartKind::kMlp);
  if (spec.residual == ResidualForm::kSequential) add.norm(kMlpNorm, kMlpNormBias, spec);
  if (gated) add.matrix(kGate, inner, hidden);
  add.vector_if(gated && spec.mlp_bias, kGateBias, inner);
  add.matrix(kUp, inner, hidden);
  add.vector_if(spec.mlp_bias, kUpBias, inner);
  add.matrix(kDown, hidden, inner);
  add.vector_if(spec.mlp_bias, kDownBias, hidden);
}

}  // namespace

std::vector<TensorSpec> slab_tensors(const ModelSpec& spec, SlabKind slab, DType weights) {
  using enum TensorRole;
  CatalogBuilder add(weights);
  switch (slab) {
    case SlabKind::kEmbedding:
      add.part(PartKind::kEmbedding);
      if (spec.tied_head) {
        add.matrix(kTokenEmbedding, spec.vocab_size, spec.embedding_size);
      } else {
        add.table(kTokenEmbedding, spec.vocab_size, spec.embedding_size);
      }
      if (spec.projected_embedding())
        add.matrix(kEmbeddingProjection, spec.hidden_size, spec.embedding_size);
      if (spec.position == PositionKind::kLearned)
        add.table(kPositionEmbedding, spec.max_position_embeddings, spec.hidden_size);
      if (spec.embedding_norm) add.norm(kEmbeddingNorm, kEmbeddingNormBias, spec);
      break;
    case SlabKind::kLayer:
      add_attention(add, spec);
      add_mlp(add, spec);
      break;
    case SlabKind::kHead:
      add.part(PartKind::kHead);
      if (spec.final_norm) add.norm(kFinalNorm, kFinalNormBias, spec);
      if (spec.projected_embedding())
        add.matrix(kHeadProjection, spec.embedding_size, spec.hidden_size);
      if (!spec.tied_head) add.matrix(kHead, spec.vocab_size, spec.embedding_size);
      add.vector_if(spec.head_bias, kHeadBias, spec.vocab_size);
      break;
  }
  return add.take();
}

bool is_layer_role(TensorRole role) {
  return role >= TensorRole::kAttentionNorm && role <= TensorRole::kDownBias;
}

std::string_view role_name(TensorRole role) {
  return kRoleNames[static_cast<std::size_t>(role)];
}

std::optional<TensorRole> parse_role(std::string_view name) {
  for (std::size_t i = 0; i < kRoleNames.size(); ++i)
    if (kRoleNames[i] == name) return static_cast<TensorRole>(i);
  return std::nullopt;
}

std::string_view part_name(PartKind part) {
  return kPartNames[static_cast<std::size_t>(part)];
}

std::optional<PartKind> parse_part(std::string_view name) {
  for (std::size_t i = 0; i < kPartNames.size(); ++i)
    if (kPartNames[i] == name) return static_cast<PartKind>(i);
  return std::nullopt;
}

std::string tensor_name(TensorRole role, std::int64_t layer) {
  if (is_layer_role(role)) return fmt::format("layers.{}.{}", layer, role_name(role));
  return std::string(role_name(role));
}

std::int64_t slab_weight_bytes(const ModelSpec& spec, SlabKind slab, DType weights) {
  std::int64_t bytes = 0;
  for (const TensorSpec& tensor : slab_tensors(spec, slab, weights)) bytes += tensor.bytes();
  return bytes;
}

std::int64_t parameter_count(const ModelSpec& spec) {
  const auto count = [&](SlabKind slab) {
    std::int64_t elements = 0;
    for (const TensorSpec& tensor : slab_tensors(spec, slab, DType::kF32))
      elements += tensor.rows * tensor.cols;
    return elements;
  };
  return count(SlabKind::kEmbedding) + spec.num_hidden_layers * count(SlabKind::kLayer) +
         count(SlabKind::kHead);
}

}  // namespace stagecoach
