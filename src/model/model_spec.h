// A decoder-only transformer as axes. Pure data: no I/O, no devices, no family names in what
// follows from it. Resolved once, at import; the store's manifest carries it, so that ranks never
// parse a foreign config.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace stagecoach {

enum class NormAxis : std::uint8_t { kLayerNorm, kRmsNorm };

// How a block adds its two branches to the hidden state x.
enum class ResidualForm : std::uint8_t {
  kSequential,          // x += attention(norm1 x);  x += mlp(norm2 x)
  kParallelSharedNorm,  // x += attention(norm1 x) + mlp(norm1 x)
  kParallelTwoNorms,    // x += attention(norm1 x) + mlp(norm2 x)
};

// Where a sequential block normalises.
enum class NormPlacement : std::uint8_t {
  kBefore,  // x += branch(norm x)
  kAfter,   // x = norm(x + branch(x))
};

enum class PositionKind : std::uint8_t {
  kLearned,  // a table added to the token embedding
  kRotary,   // half-split rotation of q and k; interleaved checkpoints are permuted on import
  kAlibi,    // a penalty on scores that grows with the distance, at each head's slope
};

enum class ActivationKind : std::uint8_t { kGeluTanh, kGeluErf, kRelu, kSilu };
enum class MlpKind : std::uint8_t { kPlain, kGated };  // down(act(up x)) · down(act(gate x) ⊙ up x)

struct ModelSpec {
  std::string family;        // free metadata ("gptj"); nothing branches on it
  std::string architecture;  // as the checkpoint called itself ("GPTJForCausalLM")

  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_position_embeddings = 0;
  // Width of the token embedding and of what the head's matrix reads; where it is not hidden_size,
  // a projection leads from it into the blocks and one back out of them.
  std::int64_t embedding_size = 0;

  NormAxis norm = NormAxis::kLayerNorm;
  float norm_epsilon = 1e-5f;
  bool norm_bias = true;  // LayerNorm has one, RMSNorm has not
  NormPlacement norm_placement = NormPlacement::kBefore;
  bool embedding_norm = false;  // of the embedded tokens, before the first block
  bool final_norm = true;       // before the head
  ResidualForm residual = ResidualForm::kSequential;

  PositionKind position = PositionKind::kLearned;
  std::int64_t rotary_dim = 0;  // leading dimensions of each head that rotate
  // (rotary_dim / 2) angles per position, any rope scaling folded in. Stored, not recomputed: pow()
  // differs between PCs.
  std::vector<float> rotary_inv_freq;
  // ALiBi: one per query head, stored for the same reason.
  std::vector<float> alibi_slopes;

  float attention_scale = 0;    // multiplies q·k
  bool query_key_norm = false;  // RMSNorm of each head's query and key, before they rotate
  // A query attends to its own position and the window − 1 before it; 0: to all before it.
  std::int64_t sliding_window = 0;
  bool query_bias = false, key_bias = false, value_bias = false, attention_output_bias = false;

  MlpKind mlp = MlpKind::kPlain;
  ActivationKind activation = ActivationKind::kGeluTanh;
  bool mlp_bias = false;

  bool tied_head = false;  // the head's matrix is the token embedding
  bool head_bias = false;

  std::vector<std::int64_t> eos_token_ids;  // may be empty
  std::int64_t bos_token_id = -1;           // -1: none

  std::int64_t query_size() const { return num_attention_heads * head_dim; }
  std::int64_t key_value_size() const { return num_key_value_heads * head_dim; }
  bool projected_embedding() const { return embedding_size != hidden_size; }

  // Throws data_error naming the first axis that makes no sense (zero sizes, heads that do not
  // divide, dimensions large enough to overflow). `where` names the file in errors.
  void validate(const std::string& where) const;

  bool operator==(const ModelSpec&) const = default;
};

// Exact round trip; from_json refuses unknown axis values and unknown keys.
Json to_json(const ModelSpec& spec);
ModelSpec model_spec_from_json(const Json& json, const std::string& where);

std::string_view activation_name(ActivationKind kind);
// Hugging Face's names: "gelu_new", "gelu_fast", "gelu_pytorch_tanh" are the tanh form, "gelu" is
// the erf form, "swish" is silu. Throws data_error listing what is known.
ActivationKind activation_from_hf_name(const std::string& name, const std::string& where);

// Multiply-add counts as two. `tokens` through one layer's matrices, and their attention over
// `context_sum` keys altogether.
std::int64_t layer_flops(const ModelSpec& spec, std::int64_t tokens, std::int64_t context_sum);
std::int64_t attention_part_flops(const ModelSpec& spec, std::int64_t tokens,
                                  std::int64_t context_sum);
std::int64_t mlp_part_flops(const ModelSpec& spec, std::int64_t tokens);
std::int64_t head_flops(const ModelSpec& spec, std::int64_t tokens);

}  // namespace stagecoach
