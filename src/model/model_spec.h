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
};

enum class PositionKind : std::uint8_t {
  kLearned,  // a table added to the token embedding
  kRotary,   // half-split rotation of q and k; interleaved checkpoints are permuted on import
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

  NormAxis norm = NormAxis::kLayerNorm;
  float norm_epsilon = 1e-5f;
  bool norm_bias = true;  // LayerNorm has one, RMSNorm has not
  ResidualForm residual = ResidualForm::kSequential;

  PositionKind position = PositionKind::kLearned;
  std::int64_t rotary_dim = 0;  // leading dimensions of each head that rotate
  // (rotary_dim / 2) angles per position, any rope scaling folded in. Stored, not recomputed: pow()
  // differs between PCs.
  std::vector<float> rotary_inv_freq;

  float attention_scale = 0;  // multiplies q·k
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

// Multiply-add counts as two. One token through one layer's matrices, and its attention over
// `context` keys.
std::int64_t layer_flops(const ModelSpec& spec, std::int64_t tokens, std::int64_t context_sum);
std::int64_t attention_part_flops(const ModelSpec& spec, std::int64_t tokens,
                                  std::int64_t context_sum);
std::int64_t mlp_part_flops(const ModelSpec& spec, std::int64_t tokens);
std::int64_t head_flops(const ModelSpec& spec, std::int64_t tokens);

}  // namespace stagecoach
