#include "model/model_spec.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"

namespace stagecoach {
namespace {

template <typename Axis, std::size_t N>
using AxisNames = std::array<std::pair<Axis, std::string_view>, N>;

constexpr AxisNames<NormAxis, 2> kNormNames{
    {{NormAxis::kLayerNorm, "layernorm"}, {NormAxis::kRmsNorm, "rmsnorm"}}};
constexpr AxisNames<ResidualForm, 3> kResidualNames{
    {{ResidualForm::kSequential, "sequential"},
     {ResidualForm::kParallelSharedNorm, "parallel_shared_norm"},
     {ResidualForm::kParallelTwoNorms, "parallel_two_norms"}}};
constexpr AxisNames<NormPlacement, 2> kPlacementNames{
    {{NormPlacement::kBefore, "before"}, {NormPlacement::kAfter, "after"}}};
constexpr AxisNames<PositionKind, 3> kPositionNames{{{PositionKind::kLearned, "learned"},
                                                     {PositionKind::kRotary, "rotary"},
                                                     {PositionKind::kAlibi, "alibi"}}};
constexpr AxisNames<MlpKind, 2> kMlpNames{{{MlpKind::kPlain, "plain"}, {MlpKind::kGated, "gated"}}};
constexpr AxisNames<ActivationKind, 4> kActivationNames{{{ActivationKind::kGeluTanh, "gelu_tanh"},
                                                         {ActivationKind::kGeluErf, "gelu_erf"},
                                                         {ActivationKind::kRelu, "relu"},
                                                         {ActivationKind::kSilu, "silu"}}};

template <typename Axis, std::size_t N>
std::string_view name_of(const AxisNames<Axis, N>& names, Axis value) {
  for (const auto& [axis, name] : names)
    if (axis == value) return name;
  return "?";
}

template <typename Axis, std::size_t N>
Axis axis_at(const JsonObject& object, const char* key, const AxisNames<Axis, N>& names) {
  const std::string text = object.string(key);
  std::string known;
  for (const auto& [axis, name] : names) {
    if (name == text) return axis;
    known += (known.empty() ? "" : ", ") + std::string(name);
  }
  throw data_error(
      fmt::format("{}: unknown {} \"{}\"; this build knows {}", object.where(), key, text, known),
      "the file may have been written by a newer Stagecoach");
}

// Generous bounds: the largest published dense models stay far below, and every product of two of
// them fits in 63 bits.
constexpr std::int64_t kMaxWidth = 1 << 24;
constexpr std::int64_t kMaxLayers = 1 << 16;
// Three orders of magnitude above the largest: bytes and flops of any batch stay countable in 63
// bits.
constexpr double kMaxParameters = 0x1p50;

// One list of the integer fields, for reading and writing alike.
struct IntegerField {
  const char* key;
  std::int64_t ModelSpec::*member;
};
constexpr std::array<IntegerField, 11> kIntegers{{
    {"vocab_size", &ModelSpec::vocab_size},
    {"hidden_size", &ModelSpec::hidden_size},
    {"intermediate_size", &ModelSpec::intermediate_size},
    {"num_hidden_layers", &ModelSpec::num_hidden_layers},
    {"num_attention_heads", &ModelSpec::num_attention_heads},
    {"num_key_value_heads", &ModelSpec::num_key_value_heads},
    {"head_dim", &ModelSpec::head_dim},
    {"max_position_embeddings", &ModelSpec::max_position_embeddings},
    {"embedding_size", &ModelSpec::embedding_size},
    {"rotary_dim", &ModelSpec::rotary_dim},
    {"sliding_window", &ModelSpec::sliding_window},
}};

struct BooleanField {
  const char* key;
  bool ModelSpec::*member;
};
constexpr std::array<BooleanField, 11> kBooleans{{
    {"norm_bias", &ModelSpec::norm_bias},
    {"embedding_norm", &ModelSpec::embedding_norm},
    {"final_norm", &ModelSpec::final_norm},
    {"query_key_norm", &ModelSpec::query_key_norm},
    {"query_bias", &ModelSpec::query_bias},
    {"key_bias", &ModelSpec::key_bias},
    {"value_bias", &ModelSpec::value_bias},
    {"attention_output_bias", &ModelSpec::attention_output_bias},
    {"mlp_bias", &ModelSpec::mlp_bias},
    {"tied_head", &ModelSpec::tied_head},
    {"head_bias", &ModelSpec::head_bias},
}};

// Doubles, whose shortest decimal form reads back exactly and narrows back exactly.
std::vector<double> widened(const std::vector<float>& values) {
  return {values.begin(), values.end()};
}

std::vector<float> floats_at(const JsonObject& object, const char* key) {
  std::vector<float> values;
  for (const Json& value : object.array(key)) {
    if (!value.is_number())
      throw data_error(fmt::format("{}: {} should hold numbers", object.where(), key));
    values.push_back(static_cast<float>(value.get<double>()));
  }
  return values;
}

}  // namespace

void ModelSpec::validate(const std::string& where) const {
  const auto require = [&](bool condition, const std::string& problem) {
    if (!condition) throw data_error(fmt::format("{}: {}", where, problem));
  };
  const auto in_range = [&](const char* name, std::int64_t value, std::int64_t high) {
    require(value >= 1 && value <= high,
            fmt::format("{} should be between 1 and {}, found {}", name, high, value));
  };
  in_range("vocab_size", vocab_size, kMaxWidth);
  in_range("hidden_size", hidden_size, kMaxWidth);
  in_range("intermediate_size", intermediate_size, kMaxWidth);
  in_range("num_hidden_layers", num_hidden_layers, kMaxLayers);
  in_range("num_attention_heads", num_attention_heads, kMaxLayers);
  in_range("num_key_value_heads", num_key_value_heads, num_attention_heads);
  in_range("head_dim", head_dim, 1 << 14);
  in_range("max_position_embeddings", max_position_embeddings, kMaxWidth);
  in_range("embedding_size", embedding_size, kMaxWidth);
  in_range("num_attention_heads × head_dim", query_size(), kMaxWidth);
  require(num_attention_heads % num_key_value_heads == 0,
          fmt::format("num_attention_heads ({}) should be a multiple of num_key_value_heads ({})",
                      num_attention_heads, num_key_value_heads));
  const auto real = [](std::int64_t value) { return static_cast<double>(value); };
  const double parameters =
      real(hidden_size) * (real(num_hidden_layers) * real(2 * query_size() + 2 * key_value_size() +
                                                          3 * intermediate_size) +
                           real(max_position_embeddings + 2 * embedding_size)) +
      2 * real(vocab_size) * real(embedding_size);
  require(parameters <= kMaxParameters,
          fmt::format("sizes ask for {:.3g} parameters, more than any model has", parameters));
  require(std::isfinite(norm_epsilon) && norm_epsilon >= 0,
          fmt::format("norm_epsilon should be finite and not negative, found {}", norm_epsilon));
  require(std::isfinite(attention_scale) && attention_scale > 0,
          fmt::format("attention_scale should be finite and positive, found {}", attention_scale));
  if (position == PositionKind::kRotary) {
    require(rotary_dim >= 2 && rotary_dim <= head_dim && rotary_dim % 2 == 0,
            fmt::format("rotary_dim should be even and between 2 and head_dim ({}), found {}",
                        head_dim, rotary_dim));
    require(static_cast<std::int64_t>(rotary_inv_freq.size()) == rotary_dim / 2,
            fmt::format("rotary_inv_freq should have {} values, found {}", rotary_dim / 2,
                        rotary_inv_freq.size()));
    for (float frequency : rotary_inv_freq)
      require(std::isfinite(frequency) && frequency >= 0,
              "rotary_inv_freq holds a value that is not finite");
  } else {
    require(rotary_dim == 0 && rotary_inv_freq.empty(),
            "rotary settings stand in a model without rotary positions");
  }
  const std::int64_t slopes = position == PositionKind::kAlibi ? num_attention_heads : 0;
  require(static_cast<std::int64_t>(alibi_slopes.size()) == slopes,
          fmt::format("alibi_slopes should have {} values, found {}", slopes, alibi_slopes.size()));
  for (float slope : alibi_slopes)
    require(std::isfinite(slope) && slope >= 0, "alibi_slopes holds a value that is not finite");
  require(sliding_window >= 0 && sliding_window <= kMaxWidth,
          fmt::format("sliding_window should be between 0 and {}, found {}", kMaxWidth,
                      sliding_window));
  require(norm_placement == NormPlacement::kBefore || residual == ResidualForm::kSequential,
          "a parallel block normalises before its branches, found norm_placement \"after\"");
  for (std::int64_t id : eos_token_ids)
    require(id >= 0 && id < kMaxWidth, fmt::format("eos_token_id {} is out of range", id));
  require(bos_token_id >= -1 && bos_token_id < kMaxWidth,
          fmt::format("bos_token_id {} is out of range", bos_token_id));
}

Json to_json(const ModelSpec& spec) {
  Json json = Json::object();
  json["family"] = spec.family;
  json["architecture"] = spec.architecture;
  for (const auto& [key, member] : kIntegers) json[key] = spec.*member;
  for (const auto& [key, member] : kBooleans) json[key] = spec.*member;
  json["norm"] = name_of(kNormNames, spec.norm);
  json["norm_epsilon"] = static_cast<double>(spec.norm_epsilon);
  json["attention_scale"] = static_cast<double>(spec.attention_scale);
  json["norm_placement"] = name_of(kPlacementNames, spec.norm_placement);
  json["residual"] = name_of(kResidualNames, spec.residual);
  json["position"] = name_of(kPositionNames, spec.position);
  json["rotary_inv_freq"] = widened(spec.rotary_inv_freq);
  json["alibi_slopes"] = widened(spec.alibi_slopes);
  json["mlp"] = name_of(kMlpNames, spec.mlp);
  json["activation"] = activation_name(spec.activation);
  json["eos_token_ids"] = spec.eos_token_ids;
  json["bos_token_id"] = spec.bos_token_id;
  return json;
}

ModelSpec model_spec_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  const Json known = to_json(ModelSpec{});
  for (const auto& [key, value] : json.items()) {
    if (!known.contains(key))
      throw data_error(fmt::format("{}: unknown key \"{}\"", where, key),
                       "the file may have been written by a newer Stagecoach");
  }
  ModelSpec spec;
  spec.family = object.string("family");
  spec.architecture = object.string("architecture");
  for (const auto& [key, member] : kIntegers)
    spec.*member = object.integer_in(key, 0, std::int64_t{1} << 40);
  for (const auto& [key, member] : kBooleans) spec.*member = object.boolean(key);
  spec.norm = axis_at(object, "norm", kNormNames);
  spec.norm_epsilon = static_cast<float>(object.number("norm_epsilon"));
  spec.attention_scale = static_cast<float>(object.number("attention_scale"));
  spec.norm_placement = axis_at(object, "norm_placement", kPlacementNames);
  spec.residual = axis_at(object, "residual", kResidualNames);
  spec.position = axis_at(object, "position", kPositionNames);
  spec.rotary_inv_freq = floats_at(object, "rotary_inv_freq");
  spec.alibi_slopes = floats_at(object, "alibi_slopes");
  spec.mlp = axis_at(object, "mlp", kMlpNames);
  spec.activation = axis_at(object, "activation", kActivationNames);
  for (const Json& value : object.array("eos_token_ids")) {
    if (!value.is_number_integer())
      throw data_error(fmt::format("{}: eos_token_ids should hold integers", where));
    spec.eos_token_ids.push_back(value.get<std::int64_t>());
  }
  spec.bos_token_id = object.integer("bos_token_id");
  spec.validate(where);
  return spec;
}

std::string_view activation_name(ActivationKind kind) {
  return name_of(kActivationNames, kind);
}

ActivationKind activation_from_hf_name(const std::string& name, const std::string& where) {
  static constexpr std::array<std::pair<std::string_view, ActivationKind>, 7> kNames{{
      {"gelu_new", ActivationKind::kGeluTanh},
      {"gelu_fast", ActivationKind::kGeluTanh},
      {"gelu_pytorch_tanh", ActivationKind::kGeluTanh},
      {"gelu", ActivationKind::kGeluErf},
      {"relu", ActivationKind::kRelu},
      {"silu", ActivationKind::kSilu},
      {"swish", ActivationKind::kSilu},
  }};
  std::string known;
  for (const auto& [candidate, kind] : kNames) {
    if (candidate == name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(candidate);
  }
  throw data_error(
      fmt::format("{}: unknown activation \"{}\"; this build knows {}", where, name, known));
}

std::int64_t attention_part_flops(const ModelSpec& spec, std::int64_t tokens,
                                  std::int64_t context_sum) {
  const std::int64_t projections =
      spec.hidden_size * (2 * spec.query_size() + 2 * spec.key_value_size());
  return 2 * tokens * projections + 4 * context_sum * spec.query_size();
}

std::int64_t mlp_part_flops(const ModelSpec& spec, std::int64_t tokens) {
  const std::int64_t matrices = spec.mlp == MlpKind::kGated ? 3 : 2;
  return 2 * tokens * matrices * spec.hidden_size * spec.intermediate_size;
}

std::int64_t layer_flops(const ModelSpec& spec, std::int64_t tokens, std::int64_t context_sum) {
  return attention_part_flops(spec, tokens, context_sum) + mlp_part_flops(spec, tokens);
}

std::int64_t head_flops(const ModelSpec& spec, std::int64_t tokens) {
  const std::int64_t projection =
      spec.projected_embedding() ? spec.hidden_size * spec.embedding_size : 0;
  return 2 * tokens * (spec.embedding_size * spec.vocab_size + projection);
}

}  // namespace stagecoach
