#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "base/error.h"
#include "checkpoint/family.h"
#include "checkpoint/import.h"

namespace stagecoach {
namespace {

Json gpt2() {
  return {{"architectures", {"GPT2LMHeadModel"}},
          {"model_type", "gpt2"},
          {"n_embd", 48},
          {"n_head", 4},
          {"n_layer", 2},
          {"n_positions", 32},
          {"vocab_size", 101}};
}
Json gptj() {
  return {{"architectures", {"GPTJForCausalLM"}},
          {"model_type", "gptj"},
          {"n_embd", 64},
          {"n_head", 4},
          {"n_layer", 2},
          {"n_positions", 32},
          {"vocab_size", 101},
          {"rotary_dim", 8}};
}
Json llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"hidden_size", 64},
          {"num_attention_heads", 4},
          {"num_hidden_layers", 3},
          {"intermediate_size", 100},
          {"vocab_size", 101}};
}
Json with(Json config, const Json& changes) {
  config.update(changes);
  return config;
}

ModelSpec resolve(const Json& config) {
  return resolve_config(config, nullptr, "config.json");
}

std::string refusal(const Json& config) {
  try {
    resolve(config);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  return "accepted";
}

#define EXPECT_REFUSED(config, part) \
  EXPECT_PRED_FORMAT2(testing::IsSubstring, part, refusal(config))

TEST(ResolveConfig, FillsInGpt2sDefaults) {
  const ModelSpec spec = resolve({{"model_type", "gpt2"}});
  EXPECT_EQ(spec.family, "gpt2");
  EXPECT_EQ(spec.vocab_size, 50257);
  EXPECT_EQ(spec.hidden_size, 768);
  EXPECT_EQ(spec.intermediate_size, 3072);
  EXPECT_EQ(spec.num_hidden_layers, 12);
  EXPECT_EQ(spec.num_attention_heads, 12);
  EXPECT_EQ(spec.num_key_value_heads, 12);
  EXPECT_EQ(spec.head_dim, 64);
  EXPECT_EQ(spec.max_position_embeddings, 1024);
  EXPECT_EQ(spec.norm, NormAxis::kLayerNorm);
  EXPECT_EQ(spec.norm_epsilon, 1e-5f);
  EXPECT_EQ(spec.residual, ResidualForm::kSequential);
  EXPECT_EQ(spec.position, PositionKind::kLearned);
  EXPECT_EQ(spec.attention_scale, 0.125f);
  EXPECT_EQ(spec.mlp, MlpKind::kPlain);
  EXPECT_EQ(spec.activation, ActivationKind::kGeluTanh);
  EXPECT_TRUE(spec.norm_bias && spec.query_bias && spec.key_bias && spec.value_bias);
  EXPECT_TRUE(spec.attention_output_bias && spec.mlp_bias && spec.tied_head);
  EXPECT_FALSE(spec.head_bias);
  EXPECT_TRUE(spec.rotary_inv_freq.empty());
  EXPECT_EQ(spec.eos_token_ids, std::vector<std::int64_t>{50256});
  EXPECT_EQ(spec.bos_token_id, 50256);
}

TEST(ResolveConfig, FillsInGptjsDefaults) {
  const ModelSpec spec = resolve({{"architectures", {"GPTJForCausalLM"}}});
  EXPECT_EQ(spec.architecture, "GPTJForCausalLM");
  EXPECT_EQ(spec.vocab_size, 50400);
  EXPECT_EQ(spec.hidden_size, 4096);
  EXPECT_EQ(spec.num_hidden_layers, 28);
  EXPECT_EQ(spec.head_dim, 256);
  EXPECT_EQ(spec.rotary_dim, 64);
  EXPECT_EQ(spec.intermediate_size, 16384);
  EXPECT_EQ(spec.residual, ResidualForm::kParallelSharedNorm);
  EXPECT_EQ(spec.attention_scale, 0.0625f);
  EXPECT_TRUE(spec.norm_bias && spec.mlp_bias && spec.head_bias);
  EXPECT_FALSE(spec.query_bias || spec.attention_output_bias || spec.tied_head);
  EXPECT_TRUE(resolve(with(gptj(), {{"tie_word_embeddings", true}})).tied_head);
}

TEST(ResolveConfig, GptNeoXIsParallelUnlessItSaysNo) {
  const Json config = {{"model_type", "gpt_neox"}, {"hidden_size", 64}, {"num_attention_heads", 2}};
  const ModelSpec spec = resolve(config);
  EXPECT_EQ(spec.residual, ResidualForm::kParallelTwoNorms);
  EXPECT_EQ(spec.rotary_dim, 8);
  EXPECT_EQ(spec.activation, ActivationKind::kGeluErf);
  EXPECT_EQ(resolve(with(config, {{"use_parallel_residual", false}})).residual,
            ResidualForm::kSequential);
  EXPECT_REFUSED(with(config, {{"use_parallel_residual", "yes"}}), "false or true");
  EXPECT_EQ(resolve(with(config, {{"rotary_pct", 1.0}})).rotary_dim, 32);
  EXPECT_EQ(resolve(with(config, {{"rope_parameters",
                                   {{"rope_type", "default"},
                                    {"rope_theta", 500.0},
                                    {"partial_rotary_factor", 0.5}}}}))
                .rotary_dim,
            16);
  EXPECT_REFUSED(with(config, {{"rotary_pct", 0.0}}), "share of rotary dimensions");
  EXPECT_REFUSED(with(config, {{"rotary_pct", 0.1}}), "should be even");
  EXPECT_REFUSED(
      with(config, {{"rotary_pct", 0.5}, {"rope_parameters", {{"partial_rotary_factor", 0.25}}}}),
      "\"partial_rotary_factor\" is 0.25");
}

TEST(ResolveConfig, OptNormalisesAfterwardsAndProjectsWhereItSaysSo) {
  const Json config = {{"model_type", "opt"}};
  const ModelSpec spec = resolve(config);
  EXPECT_EQ(spec.norm_placement, NormPlacement::kBefore);
  EXPECT_TRUE(spec.final_norm && spec.tied_head && spec.query_bias);
  EXPECT_EQ(spec.embedding_size, 768);
  const ModelSpec opt_350m =
      resolve(with(config, {{"do_layer_norm_before", false}, {"word_embed_proj_dim", 512}}));
  EXPECT_EQ(opt_350m.norm_placement, NormPlacement::kAfter);
  EXPECT_FALSE(opt_350m.final_norm);
  EXPECT_EQ(opt_350m.embedding_size, 512);
  EXPECT_FALSE(resolve(with(config, {{"_remove_final_layer_norm", true}})).final_norm);
  EXPECT_FALSE(resolve(with(config, {{"enable_bias", false}})).mlp_bias);
  EXPECT_REFUSED(with(config, {{"layer_norm_elementwise_affine", false}}), "not supported");
}

TEST(ResolveConfig, BloomsSlopesAreGeometricAndFillTheGaps) {
  const Json config = {{"model_type", "bloom"}, {"n_embed", 48}, {"n_head", 8}};
  const ModelSpec spec = resolve(config);
  EXPECT_TRUE(spec.embedding_norm);
  const std::vector<float> halves = {0.5f,     0.25f,     0.125f,     0.0625f,
                                     0.03125f, 0.015625f, 0.0078125f, 0.00390625f};
  EXPECT_EQ(spec.alibi_slopes, halves);
  // Six heads: the four of four, then the first and third of eight.
  EXPECT_EQ(resolve(with(config, {{"n_head", 6}})).alibi_slopes,
            (std::vector<float>{0.25f, 0.0625f, 0.015625f, 0.00390625f, 0.5f, 0.125f}));
  EXPECT_EQ(resolve({{"model_type", "bloom"}, {"hidden_size", 14336}, {"n_head", 112}})
                .alibi_slopes.size(),
            112u);
  EXPECT_REFUSED(with(config, {{"apply_residual_connection_post_layernorm", true}}),
                 "not supported");
}

TEST(ResolveConfig, MistralHasAWindowUnlessItIsNull) {
  const Json config = {{"model_type", "mistral"}};
  EXPECT_EQ(resolve(config).sliding_window, 4096);
  EXPECT_EQ(resolve(with(config, {{"sliding_window", nullptr}})).sliding_window, 0);
  EXPECT_EQ(resolve(with(config, {{"sliding_window", 512}})).sliding_window, 512);
  EXPECT_REFUSED(with(config, {{"sliding_window", 0}}), "sliding_window");
  EXPECT_REFUSED(with(config, {{"sliding_window", "wide"}}), "sliding_window");
}

TEST(ResolveConfig, QwensDifferInBiasesAndHeadNorms) {
  const ModelSpec qwen2 = resolve({{"model_type", "qwen2"}, {"sliding_window", 32768}});
  EXPECT_TRUE(qwen2.query_bias && qwen2.key_bias && qwen2.value_bias);
  EXPECT_FALSE(qwen2.attention_output_bias || qwen2.query_key_norm);
  EXPECT_EQ(qwen2.sliding_window, 0);
  EXPECT_REFUSED(with({{"model_type", "qwen2"}}, {{"use_sliding_window", true}}), "not supported");
  const ModelSpec qwen3 = resolve({{"model_type", "qwen3"}, {"hidden_size", 1024}});
  EXPECT_TRUE(qwen3.query_key_norm);
  EXPECT_FALSE(qwen3.query_bias);
  EXPECT_EQ(qwen3.head_dim, 128);
}

// Hugging Face's own configs of families that this build does not compute.
TEST(ResolveConfig, OtherFamiliesAreRefusedByName) {
  for (const char* name :
       {"MixtralForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "MambaForCausalLM",
        "BertForMaskedLM", "FalconForCausalLM", "PhiForCausalLM", "GPTNeoForCausalLM",
        "T5ForConditionalGeneration", "DeepseekV3ForCausalLM"}) {
    EXPECT_REFUSED((Json{{"architectures", {name}}}), name);
    EXPECT_REFUSED((Json{{"architectures", {name}}}), "this build imports BloomForCausalLM");
  }
  EXPECT_REFUSED((Json{{"model_type", "gpt_neo"}}), "gpt_neo");
}

TEST(ResolveConfig, FillsInLlamasDefaults) {
  const ModelSpec spec = resolve({{"model_type", "llama"}});
  EXPECT_EQ(spec.architecture, "LlamaForCausalLM");
  EXPECT_EQ(spec.vocab_size, 32000);
  EXPECT_EQ(spec.hidden_size, 4096);
  EXPECT_EQ(spec.intermediate_size, 11008);
  EXPECT_EQ(spec.num_key_value_heads, 32);
  EXPECT_EQ(spec.head_dim, 128);
  EXPECT_EQ(spec.rotary_dim, 128);
  EXPECT_EQ(spec.max_position_embeddings, 2048);
  EXPECT_EQ(spec.norm, NormAxis::kRmsNorm);
  EXPECT_EQ(spec.norm_epsilon, 1e-6f);
  EXPECT_EQ(spec.mlp, MlpKind::kGated);
  EXPECT_EQ(spec.activation, ActivationKind::kSilu);
  EXPECT_FALSE(spec.norm_bias || spec.query_bias || spec.mlp_bias || spec.head_bias ||
               spec.tied_head);
  EXPECT_EQ(spec.attention_scale, static_cast<float>(1.0 / std::sqrt(128.0)));
  EXPECT_EQ(spec.bos_token_id, 1);
  EXPECT_EQ(spec.eos_token_ids, std::vector<std::int64_t>{2});
}

TEST(ResolveConfig, ReadsTheAxesOfEachFamily) {
  EXPECT_EQ(resolve(with(gpt2(), {{"n_inner", nullptr}})).intermediate_size, 192);
  EXPECT_EQ(resolve(with(gpt2(), {{"n_inner", 77}})).intermediate_size, 77);
  EXPECT_EQ(resolve(with(gpt2(), {{"activation_function", "gelu"}})).activation,
            ActivationKind::kGeluErf);
  EXPECT_FALSE(resolve(with(gpt2(), {{"tie_word_embeddings", false}})).tied_head);
  EXPECT_EQ(resolve(with(gpt2(), {{"n_ctx", 99}})).max_position_embeddings, 32);
  Json old = with(gpt2(), {{"n_ctx", 16}});
  old.erase("n_positions");
  EXPECT_EQ(resolve(old).max_position_embeddings, 16);

  const ModelSpec spec = resolve(with(llama(), {{"num_key_value_heads", 2},
                                                {"head_dim", 20},
                                                {"attention_bias", true},
                                                {"mlp_bias", true},
                                                {"tie_word_embeddings", true},
                                                {"rms_norm_eps", 1e-5}}));
  EXPECT_EQ(spec.num_key_value_heads, 2);
  EXPECT_EQ(spec.head_dim, 20);
  EXPECT_EQ(spec.query_size(), 80);
  EXPECT_EQ(spec.rotary_dim, 20);
  EXPECT_TRUE(spec.query_bias && spec.key_bias && spec.value_bias && spec.attention_output_bias);
  EXPECT_TRUE(spec.mlp_bias && spec.tied_head);
  EXPECT_EQ(spec.norm_epsilon, 1e-5f);
  EXPECT_EQ(resolve(with(llama(), {{"num_key_value_heads", nullptr}, {"head_dim", nullptr}})),
            resolve(llama()));
}

TEST(ResolveConfig, EndOfTextIsAnIdOrAListAndGenerationConfigWins) {
  using Ids = std::vector<std::int64_t>;
  EXPECT_EQ(resolve(with(llama(), {{"eos_token_id", 7}})).eos_token_ids, Ids{7});
  EXPECT_EQ(resolve(with(llama(), {{"eos_token_id", {7, 8}}})).eos_token_ids, (Ids{7, 8}));
  EXPECT_EQ(resolve(with(llama(), {{"eos_token_id", nullptr}})).eos_token_ids, Ids{});
  EXPECT_EQ(resolve(with(llama(), {{"bos_token_id", nullptr}})).bos_token_id, -1);
  const Json generation = {{"eos_token_id", {128001, 128008, 128009}}, {"temperature", 0.6}};
  EXPECT_EQ(resolve_config(llama(), &generation, "x").eos_token_ids, (Ids{128001, 128008, 128009}));
  const Json silent = {{"temperature", 0.6}};
  EXPECT_EQ(resolve_config(llama(), &silent, "x").eos_token_ids, Ids{2});
  EXPECT_REFUSED(with(llama(), {{"eos_token_id", "</s>"}}), "token id");
  EXPECT_REFUSED(with(llama(), {{"eos_token_id", -3}}), "token id");
}

TEST(ResolveConfig, RotaryFrequenciesAreHuggingFaces) {
  const ModelSpec spec = resolve(gptj());
  ASSERT_EQ(spec.rotary_inv_freq.size(), 4u);
  EXPECT_EQ(spec.rotary_inv_freq[0], 1.0f);
  EXPECT_FLOAT_EQ(spec.rotary_inv_freq[1], 0.1f);
  EXPECT_FLOAT_EQ(spec.rotary_inv_freq[2], 0.01f);
  EXPECT_FLOAT_EQ(spec.rotary_inv_freq[3], 0.001f);
}

TEST(ResolveConfig, BothSpellingsOfRopeMeanTheSame) {
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 8192}};
  const ModelSpec v4 = resolve(with(llama(), {{"rope_theta", 500000.0}, {"rope_scaling", llama3}}));
  const ModelSpec v5 =
      resolve(with(llama(), {{"rope_parameters", with(llama3, {{"rope_theta", 500000.0}})}}));
  EXPECT_EQ(v4, v5);
  const Json linear = {{"type", "linear"}, {"factor", 2.0}};
  EXPECT_EQ(resolve(with(llama(), {{"rope_scaling", linear}})),
            resolve(with(llama(),
                         {{"rope_parameters",
                           {{"rope_type", "linear"}, {"factor", 2.0}, {"rope_theta", 10000.0}}}})));
  EXPECT_EQ(resolve(with(llama(), {{"rope_scaling", nullptr}})), resolve(llama()));
  EXPECT_EQ(resolve(with(llama(), {{"rope_parameters",
                                    {{"rope_type", "default"}, {"rope_theta", 10000.0}}}})),
            resolve(llama()));
  EXPECT_EQ(resolve(with(llama(), {{"torch_dtype", "bfloat16"}})),
            resolve(with(llama(), {{"dtype", "bfloat16"}})));
}

// Against the published formula in double: every frequency, in all three bands.
TEST(ResolveConfig, ScalesRopeAsLlama31Does) {
  const Json scaling = {{"rope_type", "llama3"},
                        {"factor", 8.0},
                        {"low_freq_factor", 1.0},
                        {"high_freq_factor", 4.0},
                        {"original_max_position_embeddings", 8192}};
  const ModelSpec spec = resolve(
      with(llama(), {{"rope_theta", 500000.0}, {"head_dim", 128}, {"rope_scaling", scaling}}));
  int kept = 0, divided = 0, blended = 0;
  for (int i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -i / 64.0), wavelength = 2 * std::numbers::pi / plain;
    double expected = plain;
    if (wavelength > 8192.0) {
      expected = plain / 8;
      ++divided;
    } else if (wavelength >= 2048.0) {
      const double smooth = (8192.0 / wavelength - 1) / 3;
      expected = (1 - smooth) * plain / 8 + smooth * plain;
      ++blended;
    } else {
      ++kept;
    }
    // A handful of float32 roundings; the blend subtracts nearly equal numbers no worse than 1 -
    // smooth does.
    EXPECT_NEAR(spec.rotary_inv_freq[static_cast<std::size_t>(i)], expected, 8 * 0x1p-24 * plain)
        << i;
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(divided, 0);
  EXPECT_GT(blended, 0);
  const ModelSpec linear =
      resolve(with(llama(), {{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}));
  for (std::size_t i = 0; i < linear.rotary_inv_freq.size(); ++i)
    EXPECT_EQ(linear.rotary_inv_freq[i], resolve(llama()).rotary_inv_freq[i] / 4);
}

TEST(ResolveConfig, RefusesRopeItDoesNotCompute) {
  for (const char* type : {"dynamic", "yarn", "longrope", "su", "mystery"})
    EXPECT_REFUSED(with(llama(), {{"rope_scaling", {{"type", type}, {"factor", 2.0}}}}), type);
  const auto scaled = [](const Json& rope) { return with(llama(), {{"rope_scaling", rope}}); };
  EXPECT_REFUSED(scaled({{"type", "linear"}}), "\"factor\" is missing");
  EXPECT_REFUSED(scaled({{"type", "linear"}, {"factor", 0}}), "positive");
  EXPECT_REFUSED(scaled({{"type", "linear"}, {"factor", 2}, {"mrope_section", {1}}}),
                 "unknown key");
  EXPECT_REFUSED(scaled({{"type", "linear"}, {"rope_type", "llama3"}, {"factor", 2}}),
                 "\"type\" is");
  EXPECT_REFUSED(scaled({{"type", "llama3"}, {"factor", 8}}), "is missing");
  EXPECT_REFUSED(scaled({{"type", "llama3"},
                         {"factor", 8},
                         {"low_freq_factor", 4},
                         {"high_freq_factor", 4},
                         {"original_max_position_embeddings", 64}}),
                 "above");
  EXPECT_REFUSED(scaled("linear"), "JSON object");
  EXPECT_REFUSED(with(llama(), {{"rope_theta", 5.0}, {"rope_parameters", {{"rope_theta", 6.0}}}}),
                 "rope_theta");
  EXPECT_REFUSED(with(llama(), {{"rope_theta", 0}}), "rope_theta");
  EXPECT_REFUSED(with(llama(), {{"rope_theta", nullptr}}), "a number");
  EXPECT_REFUSED(with(gptj(), {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}}),
                 "rope_scaling");
}

TEST(ResolveConfig, RefusesArchitecturesByName) {
  for (const char* name :
       {"MixtralForCausalLM", "Gemma2ForCausalLM", "BertModel", "MistralForCausalLM"}) {
    EXPECT_REFUSED(with(llama(), {{"architectures", {name}}}), name);
    EXPECT_REFUSED(with(llama(), {{"architectures", {name}}}), "GPTJForCausalLM");
  }
  EXPECT_REFUSED((Json{{"model_type", "bert"}}), "bert");
  EXPECT_REFUSED(Json::object(), "neither");
  EXPECT_REFUSED(with(llama(), {{"model_type", "mistral"}}), "mistral");
  EXPECT_REFUSED(with(llama(), {{"architectures", {3}}}), "names");
  EXPECT_REFUSED(Json::array(), "JSON object");
}

TEST(ResolveConfig, RefusesWhatWouldChangeResults) {
  EXPECT_REFUSED(with(gpt2(), {{"scale_attn_weights", false}}), "scale_attn_weights");
  EXPECT_REFUSED(with(gpt2(), {{"scale_attn_by_inverse_layer_idx", true}}),
                 "scale_attn_by_inverse_layer_idx");
  EXPECT_REFUSED(with(gpt2(), {{"add_cross_attention", true}}), "add_cross_attention");
  EXPECT_REFUSED(with(gpt2(), {{"activation_function", "quick_gelu"}}), "quick_gelu");
  EXPECT_REFUSED(with(gptj(), {{"rotary", false}}), "rotary");
  EXPECT_REFUSED(with(gptj(), {{"rotary_dim", nullptr}}), "rotary_dim");
  EXPECT_REFUSED(with(llama(), {{"sliding_window", 4096}}), "sliding_window");
  EXPECT_REFUSED(with(llama(), {{"attn_logit_softcapping", 50.0}}), "attn_logit_softcapping");
  EXPECT_REFUSED(with(llama(), {{"layer_types", {"full_attention", "sliding_attention"}}}),
                 "layer_types");
  EXPECT_REFUSED(with(llama(), {{"num_local_experts", 8}}), "num_local_experts");
  EXPECT_REFUSED(with(llama(), {{"partial_rotary_factor", 0.5}}), "partial_rotary_factor");
  EXPECT_REFUSED(with(llama(), {{"quantization_config", {{"quant_method", "gptq"}}}}), "quantised");
}

TEST(ResolveConfig, IgnoresWhatChangesNothing) {
  const Json noise = {{"attention_dropout", 0.1},
                      {"use_cache", false},
                      {"initializer_range", 0.02},
                      {"torch_dtype", "float16"},
                      {"transformers_version", "5.0.0"},
                      {"pad_token_id", 3},
                      {"sliding_window", nullptr},
                      {"layer_types", {"full_attention"}},
                      {"pretraining_tp", 2},
                      {"quantization_config", nullptr},
                      {"num_local_experts", 0},
                      {"unsloth_fixed", true}};
  EXPECT_EQ(resolve(with(llama(), noise)), resolve(llama()));
  EXPECT_EQ(resolve(with(gpt2(),
                         {{"scale_attn_weights", true},
                          {"summary_type", "cls_index"},
                          {"task_specific_params", {{"text-generation", {{"do_sample", true}}}}}})),
            resolve(gpt2()));
}

TEST(ResolveConfig, RefusesSizesThatMakeNoSense) {
  EXPECT_REFUSED(with(gpt2(), {{"n_embd", 50}}), "multiple");
  EXPECT_REFUSED(with(gpt2(), {{"n_embd", 0}}), "n_embd");
  EXPECT_REFUSED(with(gpt2(), {{"n_embd", 48.0}}), "an integer");
  EXPECT_REFUSED(with(gpt2(), {{"n_embd", nullptr}}), "an integer");
  EXPECT_REFUSED(with(gpt2(), {{"n_layer", 1000000000000}}), "n_layer");
  EXPECT_REFUSED(with(gpt2(), {{"n_layer", 2000000000}}), "num_hidden_layers");
  EXPECT_REFUSED(with(gpt2(), {{"hidden_size", 64}}), "another name");
  EXPECT_EQ(resolve(with(gpt2(), {{"hidden_size", 48}})), resolve(gpt2()));
  EXPECT_REFUSED(with(gptj(), {{"rotary_dim", 7}}), "rotary_dim");
  EXPECT_REFUSED(with(gptj(), {{"rotary_dim", 18}}), "rotary_dim");
  EXPECT_REFUSED(with(gptj(), {{"n_embd", 2000000000}, {"n_head", 1}, {"rotary_dim", 2000000000}}),
                 "rotary_dim");
  EXPECT_REFUSED(with(llama(), {{"num_key_value_heads", 3}}), "num_key_value_heads");
  EXPECT_REFUSED(with(llama(), {{"tie_word_embeddings", "yes"}}), "true or false");
  EXPECT_REFUSED(with(llama(), {{"hidden_act", 3}}), "a string");
  EXPECT_REFUSED(with(llama(), {{"rms_norm_eps", "small"}}), "a number");
}

TEST(FamilyDescription, UnknownKeysAreOurBugs) {
  const Json good =
      parse_json(R"({"name":"x","architectures":[],"model_types":[],"spec":{},"accepted":{},
    "ignored":[],"prefixes":[""],"tensors":[],"dropped":[]})",
                 "x");
  const auto kind_of = [](const Json& json) {
    try {
      parse_family(json, "x");
    } catch (const Error& error) {
      return std::string(error.kind() == ErrorKind::kInternal ? "internal: " : "other: ") +
             error.what();
    }
    return std::string("accepted");
  };
  EXPECT_PRED_FORMAT2(testing::IsSubstring, "internal: x: unknown key",
                      kind_of(with(good, {{"colour", 1}})));
  EXPECT_PRED_FORMAT2(testing::IsSubstring, "internal: x", kind_of(good));  // axes are missing
  EXPECT_PRED_FORMAT2(testing::IsSubstring, "unknown axis",
                      kind_of(with(good, {{"spec", {{"colour", "red"}}}})));
}

}  // namespace
}  // namespace stagecoach
