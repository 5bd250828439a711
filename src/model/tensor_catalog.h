// Every tensor of a model, derived from its ModelSpec: role, shape, layout, storage type. The
// importer writes what stands here, the store lays it out, the engine asks for it by role.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor_view.h"
#include "model/model_spec.h"

namespace stagecoach {

enum class TensorRole : std::uint8_t {
  kTokenEmbedding,       // (vocab, embedding)
  kEmbeddingProjection,  // (hidden, embedding)
  kPositionEmbedding,    // (max_position, hidden)
  kEmbeddingNorm,
  kEmbeddingNormBias,  // (hidden)
  kAttentionNorm,
  kAttentionNormBias,  // (hidden)
  kQuery,
  kQueryBias,  // (heads · head_dim, hidden)
  kKey,
  kKeyBias,
  kValue,
  kValueBias,  // (kv_heads · head_dim, hidden)
  kQueryNorm,
  kKeyNorm,  // (head_dim)
  kAttentionOutput,
  kAttentionOutputBias,  // (hidden, heads · head_dim)
  kMlpNorm,
  kMlpNormBias,  // (hidden)
  kGate,
  kGateBias,
  kUp,
  kUpBias,  // (intermediate, hidden)
  kDown,
  kDownBias,  // (hidden, intermediate)
  kFinalNorm,
  kFinalNormBias,   // (hidden)
  kHeadProjection,  // (embedding, hidden)
  kHead,
  kHeadBias,  // (vocab, embedding), (vocab)
};
inline constexpr int kTensorRoles = static_cast<int>(TensorRole::kHeadBias) + 1;

// What is leased and staged at once. A slab holds one or two parts.
enum class PartKind : std::uint8_t { kEmbedding, kAttention, kMlp, kHead };
enum class SlabKind : std::uint8_t { kEmbedding, kLayer, kHead };

struct TensorSpec {
  TensorRole role;
  PartKind part;
  std::int64_t rows, cols;  // a vector has rows == 1
  Layout layout;
  DType type;  // weights type for matrices, table_type() for tables, f32 for vectors

  std::int64_t bytes() const { return layout_bytes(layout, type, rows, cols); }
  bool is_vector() const { return layout == Layout::kRows && rows == 1; }
};

// The tensors of one slab, parts in order, in the order in which they are stored. A tied head's
// matrix is not in the head slab: it aliases the token embedding, which then is in panels so that
// the head can multiply with it. An untied embedding is only gathered and stays row-major.
std::vector<TensorSpec> slab_tensors(const ModelSpec& spec, SlabKind slab, DType weights);

// Views of the tensors of a part that is in memory, by role (absent: a null view).
struct PartTensors {
  TensorView views[kTensorRoles];
  const TensorView& operator[](TensorRole role) const { return views[static_cast<int>(role)]; }
};

// Whether there is one tensor of this role in each layer.
bool is_layer_role(TensorRole role);

// "token_embedding.weight", "q_proj.weight", "down_proj.bias" …
std::string_view role_name(TensorRole role);
std::optional<TensorRole> parse_role(std::string_view name);
std::string_view part_name(PartKind part);  // "embedding", "attention", "mlp", "head"
std::optional<PartKind> parse_part(std::string_view name);

// The name a user types: "layers.3.q_proj.weight", "token_embedding.weight", "final_norm.weight".
std::string tensor_name(TensorRole role, std::int64_t layer);

// Bytes of all tensors of a slab (without header and alignment): what a rank holds in memory.
std::int64_t slab_weight_bytes(const ModelSpec& spec, SlabKind slab, DType weights);
std::int64_t parameter_count(const ModelSpec& spec);

}  // namespace stagecoach
