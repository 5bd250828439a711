#include "model/model_spec.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/error.h"
#include "small_specs.h"

namespace stagecoach {
namespace {

// Runs `action`, which must throw a data_error; its message.
std::string data_error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kData) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return {};
}

TEST(ModelSpec, JsonRoundTripIsExact) {
  ModelSpec spec = llama_spec();
  spec.norm_epsilon = std::nextafter(1e-6f, 1.0f);
  spec.attention_scale = 1.0f / std::sqrt(80.0f);
  for (std::size_t i = 0; i < spec.rotary_inv_freq.size(); ++i)
    spec.rotary_inv_freq[i] = std::pow(10000.0f, -static_cast<float>(i) / 64) * 0.3f;
  spec.rotary_inv_freq.back() = std::numeric_limits<float>::denorm_min();
  spec.eos_token_ids = {2, 128001};
  spec.bos_token_id = 1;
  for (const ModelSpec& each : {spec, gpt2_spec(), gptj_spec()}) {
    const std::string text = to_json(each).dump();
    EXPECT_EQ(model_spec_from_json(parse_json(text, "spec"), "spec"), each);
  }
}

TEST(ModelSpec, EveryAxisRefusesAnUnknownValue) {
  for (const char* axis : {"norm", "norm_placement", "residual", "position", "mlp", "activation"}) {
    Json json = to_json(gpt2_spec());
    json[axis] = "surprise";
    const std::string message = data_error_of([&] { model_spec_from_json(json, "m.json"); });
    EXPECT_NE(message.find(axis), std::string::npos) << message;
    EXPECT_NE(message.find("surprise"), std::string::npos) << message;
    EXPECT_NE(message.find("m.json"), std::string::npos) << message;
  }
}

TEST(ModelSpec, EveryKeyIsNeededAndNoOtherIsTaken) {
  const Json complete = to_json(gpt2_spec());
  for (const auto& [key, value] : complete.items()) {
    Json json = complete;
    json.erase(key);
    EXPECT_NE(data_error_of([&] { model_spec_from_json(json, "m.json"); }).find(key),
              std::string::npos)
        << key;
    json[key] = Json::object();
    data_error_of([&] { model_spec_from_json(json, "m.json"); });
  }
  Json json = complete;
  json["rotary_temperature"] = 2;
  EXPECT_NE(data_error_of([&] { model_spec_from_json(json, "m.json"); }).find("rotary_temperature"),
            std::string::npos);
}

TEST(ModelSpec, ValidateRefusesWhatMakesNoSense) {
  struct Case {
    const char* named;
    std::function<void(ModelSpec&)> spoil;
  };
  const float nan = std::nanf("");
  const Case cases[] = {
      {"vocab_size", [](ModelSpec& s) { s.vocab_size = 0; }},
      {"vocab_size", [](ModelSpec& s) { s.vocab_size = std::int64_t{1} << 40; }},
      {"hidden_size", [](ModelSpec& s) { s.hidden_size = -1; }},
      {"intermediate_size", [](ModelSpec& s) { s.intermediate_size = 0; }},
      {"num_hidden_layers", [](ModelSpec& s) { s.num_hidden_layers = 0; }},
      {"num_hidden_layers", [](ModelSpec& s) { s.num_hidden_layers = 1 << 20; }},
      {"num_attention_heads", [](ModelSpec& s) { s.num_attention_heads = 0; }},
      {"num_key_value_heads", [](ModelSpec& s) { s.num_key_value_heads = 0; }},
      {"num_key_value_heads",
       [](ModelSpec& s) { s.num_key_value_heads = s.num_attention_heads + 1; }},
      {"multiple of", [](ModelSpec& s) { s.num_key_value_heads = 5; }},
      {"head_dim", [](ModelSpec& s) { s.head_dim = 0; }},
      {"head_dim", [](ModelSpec& s) { s.head_dim = s.rotary_dim = 1 << 15; }},
      {"max_position_embeddings", [](ModelSpec& s) { s.max_position_embeddings = 0; }},
      {"num_attention_heads × head_dim",
       [](ModelSpec& s) {
         s.num_attention_heads = s.num_key_value_heads = 1 << 16, s.head_dim = 1 << 14;
       }},
      {"norm_epsilon", [=](ModelSpec& s) { s.norm_epsilon = nan; }},
      {"norm_epsilon", [](ModelSpec& s) { s.norm_epsilon = -1e-5f; }},
      {"attention_scale", [](ModelSpec& s) { s.attention_scale = 0; }},
      {"attention_scale", [=](ModelSpec& s) { s.attention_scale = nan; }},
      {"rotary_dim", [](ModelSpec& s) { s.rotary_dim = 3; }},
      {"rotary_dim", [](ModelSpec& s) { s.rotary_dim = s.head_dim + 2; }},
      {"rotary_dim", [](ModelSpec& s) { s.rotary_dim = 0; }},
      {"rotary_inv_freq", [](ModelSpec& s) { s.rotary_inv_freq.pop_back(); }},
      {"rotary_inv_freq", [=](ModelSpec& s) { s.rotary_inv_freq[0] = nan; }},
      {"rotary", [](ModelSpec& s) { s.position = PositionKind::kLearned; }},
      {"embedding_size", [](ModelSpec& s) { s.embedding_size = 0; }},
      {"sliding_window", [](ModelSpec& s) { s.sliding_window = -1; }},
      {"alibi_slopes", [](ModelSpec& s) { s.alibi_slopes = {0.5f}; }},
      {"alibi_slopes",
       [](ModelSpec& s) {
         s.position = PositionKind::kAlibi, s.rotary_dim = 0, s.rotary_inv_freq.clear();
       }},
      {"alibi_slopes",
       [=](ModelSpec& s) {
         s.position = PositionKind::kAlibi, s.rotary_dim = 0, s.rotary_inv_freq.clear();
         s.alibi_slopes.assign(32, nan);
       }},
      {"norm_placement",
       [](ModelSpec& s) {
         s.norm_placement = NormPlacement::kAfter, s.residual = ResidualForm::kParallelTwoNorms;
       }},
      {"eos_token_id", [](ModelSpec& s) { s.eos_token_ids = {-1}; }},
      {"bos_token_id", [](ModelSpec& s) { s.bos_token_id = -2; }},
      {"parameters",
       [](ModelSpec& s) {
         s.hidden_size = s.intermediate_size = 1 << 24, s.num_hidden_layers = 1 << 16;
       }},
  };
  EXPECT_NO_THROW(llama_spec().validate("m.json"));
  for (const Case& c : cases) {
    ModelSpec spec = llama_spec();
    c.spoil(spec);
    const std::string message = data_error_of([&] { spec.validate("m.json"); });
    EXPECT_NE(message.find(c.named), std::string::npos) << c.named << ": " << message;
    EXPECT_EQ(message.find("m.json: "), 0U) << message;
  }
}

TEST(ModelSpec, TheLargestShapeThatValidatesIsCountable) {
  ModelSpec spec = llama_spec();
  spec.hidden_size = 1 << 20;
  spec.intermediate_size = 1 << 22;
  spec.num_hidden_layers = 64;
  EXPECT_NO_THROW(spec.validate("m.json"));
  EXPECT_GT(layer_flops(spec, 256, 256 * 4096), 0);
}

TEST(ModelSpec, ActivationNamesOfHuggingFace) {
  EXPECT_EQ(activation_from_hf_name("gelu_new", "c"), ActivationKind::kGeluTanh);
  EXPECT_EQ(activation_from_hf_name("gelu_fast", "c"), ActivationKind::kGeluTanh);
  EXPECT_EQ(activation_from_hf_name("gelu_pytorch_tanh", "c"), ActivationKind::kGeluTanh);
  EXPECT_EQ(activation_from_hf_name("gelu", "c"), ActivationKind::kGeluErf);
  EXPECT_EQ(activation_from_hf_name("relu", "c"), ActivationKind::kRelu);
  EXPECT_EQ(activation_from_hf_name("silu", "c"), ActivationKind::kSilu);
  EXPECT_EQ(activation_from_hf_name("swish", "c"), ActivationKind::kSilu);
  EXPECT_NE(data_error_of([] { activation_from_hf_name("mish", "c"); }).find("swish"),
            std::string::npos);
}

// The formulas against a loop over every multiply-add of a small layer.
TEST(Flops, AreTwiceTheMultiplyAdds) {
  ModelSpec spec = llama_spec();
  spec.hidden_size = spec.embedding_size = 12;
  spec.intermediate_size = 20;
  spec.num_attention_heads = 6;
  spec.num_key_value_heads = 2;
  spec.head_dim = 4;
  spec.vocab_size = 31;
  const auto count_matrix = [](std::int64_t rows, std::int64_t out, std::int64_t in) {
    std::int64_t n = 0;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t o = 0; o < out; ++o)
        for (std::int64_t i = 0; i < in; ++i) n += 2;
    return n;
  };
  const std::int64_t tokens = 5, begin = 7;
  std::int64_t contexts = 0, attention = count_matrix(tokens, 24, 12) +
                                         2 * count_matrix(tokens, 8, 12) +
                                         count_matrix(tokens, 12, 24);
  for (std::int64_t t = 0; t < tokens; ++t) {
    contexts += begin + t + 1;
    for (std::int64_t key = 0; key <= begin + t; ++key)
      attention += 6 * (2 * 4 /* q·k */ + 2 * 4 /* p·v */);
  }
  EXPECT_EQ(attention_part_flops(spec, tokens, contexts), attention);
  const std::int64_t gated = 2 * count_matrix(tokens, 20, 12) + count_matrix(tokens, 12, 20);
  EXPECT_EQ(mlp_part_flops(spec, tokens), gated);
  EXPECT_EQ(layer_flops(spec, tokens, contexts), attention + gated);
  spec.mlp = MlpKind::kPlain;
  EXPECT_EQ(mlp_part_flops(spec, tokens),
            count_matrix(tokens, 20, 12) + count_matrix(tokens, 12, 20));
  EXPECT_EQ(head_flops(spec, tokens), count_matrix(tokens, 31, 12));
}

}  // namespace
}  // namespace stagecoach
