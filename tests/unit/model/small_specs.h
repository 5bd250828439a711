// Published shapes, written by hand.
#pragma once

#include "model/model_spec.h"

namespace stagecoach {

inline ModelSpec gpt2_spec() {
  ModelSpec spec;
  spec.family = "gpt2";
  spec.architecture = "GPT2LMHeadModel";
  spec.vocab_size = 50257;
  spec.hidden_size = spec.embedding_size = 768;
  spec.intermediate_size = 3072;
  spec.num_hidden_layers = 12;
  spec.num_attention_heads = spec.num_key_value_heads = 12;
  spec.head_dim = 64;
  spec.max_position_embeddings = 1024;
  spec.attention_scale = 0.125f;
  spec.query_bias = spec.key_bias = spec.value_bias = spec.attention_output_bias = spec.mlp_bias =
      true;
  spec.tied_head = true;
  return spec;
}

inline ModelSpec gptj_spec() {
  ModelSpec spec;
  spec.family = "gptj";
  spec.architecture = "GPTJForCausalLM";
  spec.vocab_size = 50400;
  spec.hidden_size = spec.embedding_size = 4096;
  spec.intermediate_size = 16384;
  spec.num_hidden_layers = 28;
  spec.num_attention_heads = spec.num_key_value_heads = 16;
  spec.head_dim = 256;
  spec.max_position_embeddings = 2048;
  spec.residual = ResidualForm::kParallelSharedNorm;
  spec.position = PositionKind::kRotary;
  spec.rotary_dim = 64;
  spec.rotary_inv_freq.assign(32, 0.5f);
  spec.attention_scale = 0.0625f;
  spec.mlp_bias = spec.head_bias = true;
  return spec;
}

// Llama 3 8B: grouped-query attention, gated MLP, no biases, an untied head.
inline ModelSpec llama_spec() {
  ModelSpec spec;
  spec.family = "llama";
  spec.architecture = "LlamaForCausalLM";
  spec.vocab_size = 128256;
  spec.hidden_size = spec.embedding_size = 4096;
  spec.intermediate_size = 14336;
  spec.num_hidden_layers = 32;
  spec.num_attention_heads = 32;
  spec.num_key_value_heads = 8;
  spec.head_dim = 128;
  spec.max_position_embeddings = 8192;
  spec.norm = NormAxis::kRmsNorm;
  spec.norm_bias = false;
  spec.position = PositionKind::kRotary;
  spec.rotary_dim = 128;
  spec.rotary_inv_freq.assign(64, 0.25f);
  spec.attention_scale = 0.08838835f;
  spec.mlp = MlpKind::kGated;
  spec.activation = ActivationKind::kSilu;
  return spec;
}

}  // namespace stagecoach
