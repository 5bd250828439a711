// config.json → ModelSpec, through the family description that matches. The result is built as the
// JSON form of a ModelSpec, so that axis names and their checks exist once, in the model room.
#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <sstream>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/family.h"
#include "checkpoint/foreign_text.h"
#include "checkpoint/import.h"
#include "checkpoint/rope.h"

namespace stagecoach {
namespace {

// In the order in which their default expressions may refer to each other.
constexpr std::array<const char*, 10> kSizes = {
    "vocab_size",          "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim",    "intermediate_size", "max_position_embeddings",
    "embedding_size",      "rotary_dim"};

constexpr std::int64_t kMaxSize = std::int64_t{1} << 31;  // products of two sizes cannot overflow

// Keys that some architecture gives a meaning this build does not compute, with the values that
// mean "off". Refused for every family that does not read the key itself, whatever Hugging Face's
// class would do with it: a config that sets one was written for other mathematics.
const std::map<std::string, std::vector<Json>> kAcceptedAnywhere = {
    {"add_cross_attention", {nullptr, false}},
    {"alibi", {nullptr, false}},
    {"attention_multiplier", {nullptr}},
    {"attn_logit_softcapping", {nullptr}},
    {"clip_qkv", {nullptr}},
    {"embedding_multiplier", {nullptr, 1}},
    {"final_logit_softcapping", {nullptr}},
    {"is_encoder_decoder", {nullptr, false}},
    {"logit_scale", {nullptr, 1}},
    {"logits_scaling", {nullptr, 1}},
    {"n_routed_experts", {nullptr, 0}},
    {"no_rope_layers", {nullptr, Json::array()}},
    {"num_experts", {nullptr, 0}},
    {"num_local_experts", {nullptr, 0}},
    {"partial_rotary_factor", {nullptr, 1}},
    {"pruned_heads", {nullptr, Json::object()}},
    {"qk_layernorm", {nullptr, false}},
    {"query_pre_attn_scalar", {nullptr}},
    {"residual_multiplier", {nullptr, 1}},
    {"rope_parameters", {nullptr}},
    {"rope_scaling", {nullptr}},
    {"sliding_window", {nullptr, false}},
    {"text_config", {nullptr}},
    {"use_qk_norm", {nullptr, false}},
    {"use_sliding_window", {nullptr, false}},
    {"vision_config", {nullptr}},
};

// What Hugging Face's base class writes into any config.json and what changes nothing in inference.
const std::set<std::string> kIgnoredAnywhere = {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "predict_special_tokens",
    "prefix",
    "problem_type",
    "quantization_config",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
};

std::string json_text(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

bool is_expression(const ConfigValue& value) {
  return value.fallback.is_string();
}

std::vector<std::string> keys_of(const std::map<std::string, Json>& values) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : values) keys.push_back(key);
  return keys;
}

// One slope per head (Press et al. 2022): a geometric sequence over the largest power of two of
// heads, and every other member of the next finer one for the heads beyond it. In float32 where
// Hugging Face's modeling_bloom.py rounds.
std::vector<float> alibi_slopes(std::int64_t heads) {
  std::int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  // 2 ^ (−8 / n): the sequence of n heads starts there and ends at 2 ^ −8.
  const auto base = [](std::int64_t n) {
    return static_cast<double>(static_cast<float>(std::exp2(-8.0 / static_cast<double>(n))));
  };
  std::vector<float> slopes;
  for (std::int64_t i = 1; i <= power; ++i)
    slopes.push_back(static_cast<float>(std::pow(base(power), static_cast<double>(i))));
  for (std::int64_t i = 1; static_cast<std::int64_t>(slopes.size()) < heads; i += 2)
    slopes.push_back(static_cast<float>(std::pow(base(2 * power), static_cast<double>(i))));
  return slopes;
}

class ConfigReader {
 public:
  ConfigReader(const JsonObject& config, const Family& family) : config_(config), family_(family) {}

  // The axes of the description, filled in from the config, as the JSON form of a ModelSpec.
  Json read();

  // Throws for settings that would change results and that nothing here computes.
  void check_meaning() const;

 private:
  std::int64_t size(const char* field);
  std::int64_t evaluate(const std::string& expression, const char* field) const;
  Json axis(const std::string& field, const ConfigValue& value, const Json& example) const;
  std::vector<float> frequencies();
  void set_rotary_dim(const RopeScaling& scaling);
  RopeScaling scaling(double& theta) const;
  std::optional<std::string> present_key(const ConfigValue& value) const;
  std::optional<std::string> agreeing_key(const std::vector<std::string>& keys) const;
  std::set<std::string> keys_without_question() const;
  void check_accepted(const std::string& key, const Json& value,
                      const std::vector<Json>& accepted) const;

  const JsonObject& config_;
  const Family& family_;
  std::map<std::string, std::int64_t> sizes_;
};

// The spelling that the config uses, among keys that may all be there; null counts as there.
std::optional<std::string> ConfigReader::agreeing_key(const std::vector<std::string>& keys) const {
  std::optional<std::string> found;
  for (const std::string& key : keys) {
    if (!config_.json().contains(key)) continue;
    if (found && config_.at(key.c_str()) != config_.at(found->c_str()))
      throw data_error(fmt::format("{}: \"{}\" is {} but \"{}\", another name for it, is {}",
                                   config_.where(), *found, json_text(config_.at(found->c_str())),
                                   key, json_text(config_.at(key.c_str()))));
    if (!found) found = key;
  }
  return found;
}

std::optional<std::string> ConfigReader::present_key(const ConfigValue& value) const {
  const auto key = agreeing_key(value.keys);
  return key ? key : agreeing_key(value.old_keys);
}

// "head_dim", "4 * hidden_size", "hidden_size / num_attention_heads".
std::int64_t ConfigReader::evaluate(const std::string& expression, const char* field) const {
  std::istringstream words(expression);
  std::string left, operation, right;
  words >> left >> operation >> right;
  const auto term = [&](const std::string& word) {
    const auto it = sizes_.find(word);
    if (it != sizes_.end()) return it->second;
    STAGECOACH_CHECK(!word.empty() && word.find_first_not_of("0123456789") == std::string::npos);
    return static_cast<std::int64_t>(std::stoll(word));
  };
  const std::int64_t a = term(left);
  if (operation.empty()) return a;
  const std::int64_t b = term(right);
  if (operation == "*") return a * b;
  STAGECOACH_CHECK(operation == "/");
  if (a % b != 0)
    throw data_error(
        fmt::format("{}: {} ({}) should be a multiple of {} ({}), since {} is not given",
                    config_.where(), left, a, right, b, field));
  return a / b;
}

std::int64_t ConfigReader::size(const char* field) {
  const ConfigValue& value = family_.spec.at(field);
  const auto key = present_key(value);
  // Hugging Face takes null for "derive it" exactly where the default is derived.
  const bool derive = key && config_.at(key->c_str()).is_null() && is_expression(value);
  if (key && !derive) return config_.integer_in(key->c_str(), 1, kMaxSize);
  if (is_expression(value)) return evaluate(value.fallback.get<std::string>(), field);
  return value.fallback.get<std::int64_t>();
}

// One token id, a list of them, or null for none → a list.
std::vector<std::int64_t> token_ids(const JsonObject& object, const char* key) {
  const Json& json = object.at(key);
  std::vector<std::int64_t> ids;
  if (json.is_null()) return ids;
  const Json list = json.is_array() ? json : Json::array({json});
  for (const Json& item : list) {
    const bool fits = item.is_number_integer() && item >= 0 && item <= kMaxSize;
    if (!fits)
      throw data_error(fmt::format("{}: \"{}\" should be a token id or a list of them, found {}",
                                   object.where(), key, json_text(json)));
    ids.push_back(item.get<std::int64_t>());
  }
  return ids;
}

// `example` is a default ModelSpec's value, which has the axis's type.
Json ConfigReader::axis(const std::string& field, const ConfigValue& value,
                        const Json& example) const {
  const auto key = present_key(value);
  if (field == "bos_token_id") {
    // A key that is there and null means that there is none; Hugging Face's default is for an
    // absent one.
    if (!key) return value.fallback;
    const std::vector<std::int64_t> ids = token_ids(config_, key->c_str());
    return ids.empty() ? -1 : ids.front();
  }
  if (field == "eos_token_ids") {
    if (key) return token_ids(config_, key->c_str());
    return value.fallback.is_array() ? value.fallback : Json::array({value.fallback});
  }
  if (field == "activation") {
    const std::string name = key ? config_.string(key->c_str()) : value.fallback.get<std::string>();
    return activation_name(activation_from_hf_name(name, config_.where()));
  }
  const auto off = [this](const std::string& other) {
    return config_.boolean_or(other.c_str(), false);
  };
  if (std::any_of(value.off_when.begin(), value.off_when.end(), off)) return false;
  if (!key) return value.fallback;
  if (!value.values.empty()) {
    const auto meaning = value.values.find(config_.at(key->c_str()).dump());
    if (meaning != value.values.end()) return meaning->second;
    throw data_error(fmt::format("{}: \"{}\" should be {}, found {}", config_.where(), *key,
                                 fmt::join(keys_of(value.values), " or "),
                                 json_text(config_.at(key->c_str()))));
  }
  if (field == "sliding_window")
    return config_.at(key->c_str()).is_null() ? 0 : config_.integer_in(key->c_str(), 1, kMaxSize);
  if (example.is_boolean()) return config_.boolean(key->c_str());
  if (example.is_number()) return config_.number(key->c_str());
  return config_.string(key->c_str());
}

RopeScaling ConfigReader::scaling(double& theta) const {
  const bool has_v4 = config_.has("rope_scaling"), has_v5 = config_.has("rope_parameters");
  if (!has_v4 && !has_v5) return {};
  if (has_v4 && has_v5 && config_.at("rope_scaling") != config_.at("rope_parameters"))
    throw data_error(
        fmt::format("{}: \"rope_scaling\" and \"rope_parameters\" differ", config_.where()),
        "keep the one that the model was trained with");
  const JsonObject rope = config_.object(has_v5 ? "rope_parameters" : "rope_scaling");
  if (rope.has("rope_theta")) {
    const auto outer = present_key(family_.rotary->theta);
    if (outer && config_.number(outer->c_str()) != rope.number("rope_theta"))
      throw data_error(fmt::format("{}: rope_theta is {} at the top and {} in {}", config_.where(),
                                   config_.number(outer->c_str()), rope.number("rope_theta"),
                                   has_v5 ? "rope_parameters" : "rope_scaling"));
    theta = rope.number("rope_theta");
  }
  return parse_rope_scaling(rope);
}

// Of a family that rotates a share of each head; the others' is a size like any other.
void ConfigReader::set_rotary_dim(const RopeScaling& scaling) {
  const std::optional<ConfigValue>& partial = family_.rotary->partial;
  if (!partial) {
    if (scaling.partial_rotary_factor.value_or(1) != 1)
      throw data_error(fmt::format(
          "{}: \"partial_rotary_factor\" {} is not supported for this architecture, expected 1",
          config_.where(), *scaling.partial_rotary_factor));
    return;
  }
  const auto key = present_key(*partial);
  double share = key ? config_.number(key->c_str()) : partial->fallback.get<double>();
  if (scaling.partial_rotary_factor) {
    if (key && share != *scaling.partial_rotary_factor)
      throw data_error(fmt::format("{}: \"{}\" is {}, but \"partial_rotary_factor\" is {}",
                                   config_.where(), *key, share, *scaling.partial_rotary_factor));
    share = *scaling.partial_rotary_factor;
  }
  if (!(share > 0 && share <= 1))
    throw data_error(
        fmt::format("{}: the share of rotary dimensions should be above 0 and at most 1, found {}",
                    config_.where(), share));
  // Truncated, as Hugging Face does.
  sizes_["rotary_dim"] =
      static_cast<std::int64_t>(static_cast<double>(sizes_.at("head_dim")) * share);
}

std::vector<float> ConfigReader::frequencies() {
  if (!family_.rotary) return {};
  const ConfigValue& value = family_.rotary->theta;
  const auto key = present_key(value);
  double theta = key ? config_.number(key->c_str()) : value.fallback.get<double>();
  const RopeScaling scaled = family_.rotary->scaling ? scaling(theta) : RopeScaling{};
  set_rotary_dim(scaled);
  const std::int64_t rotary_dim = sizes_.at("rotary_dim"), head_dim = sizes_.at("head_dim");
  // Before anything of that size is allocated.
  if (rotary_dim > head_dim || head_dim > (1 << 14) || rotary_dim % 2 != 0)
    throw data_error(fmt::format(
        "{}: rotary_dim ({}) should be even and at most head_dim ({}), which may be at most {}",
        config_.where(), rotary_dim, head_dim, 1 << 14));
  if (!(theta >= 1 && theta <= 1e30))
    throw data_error(fmt::format("{}: rope_theta should be between 1 and 1e30, found {}",
                                 config_.where(), theta));
  return rope_frequencies(theta, rotary_dim, scaled);
}

Json ConfigReader::read() {
  Json spec = to_json(ModelSpec{});
  for (const char* field : kSizes) spec[field] = sizes_[field] = size(field);
  for (const auto& [field, value] : family_.spec)
    if (!sizes_.contains(field)) spec[field] = axis(field, value, spec[field]);
  const std::vector<float> inv_freq = frequencies();
  spec["rotary_inv_freq"] = std::vector<double>(inv_freq.begin(), inv_freq.end());
  spec["rotary_dim"] = sizes_["rotary_dim"];
  if (spec["position"] == "alibi") {
    const std::vector<float> slopes = alibi_slopes(sizes_["num_attention_heads"]);
    spec["alibi_slopes"] = std::vector<double>(slopes.begin(), slopes.end());
  }
  spec["attention_scale"] = 1.0 / std::sqrt(static_cast<double>(sizes_["head_dim"]));
  spec["family"] = family_.name;
  const bool named = config_.has("architectures") && !config_.array("architectures").empty();
  spec["architecture"] =
      named ? config_.array("architectures")[0] : Json(family_.architectures.front());
  return spec;
}

// What read() looks at, and what nobody needs to.
std::set<std::string> ConfigReader::keys_without_question() const {
  std::set<std::string> read = kIgnoredAnywhere;
  read.insert(family_.ignored.begin(), family_.ignored.end());
  const auto add = [&read](const ConfigValue& value) {
    read.insert(value.keys.begin(), value.keys.end());
    read.insert(value.old_keys.begin(), value.old_keys.end());
    read.insert(value.off_when.begin(), value.off_when.end());
  };
  for (const auto& [field, value] : family_.spec) add(value);
  if (family_.rotary) add(family_.rotary->theta);
  if (family_.rotary && family_.rotary->partial) add(*family_.rotary->partial);
  if (family_.rotary && family_.rotary->scaling) read.insert({"rope_scaling", "rope_parameters"});
  return read;
}

void ConfigReader::check_accepted(const std::string& key, const Json& value,
                                  const std::vector<Json>& accepted) const {
  if (std::find(accepted.begin(), accepted.end(), value) != accepted.end()) return;
  throw data_error(
      fmt::format("{}: \"{}\" is {}, which would change results and is not supported; expected {}",
                  config_.where(), key, json_text(value), json_text(accepted)));
}

void ConfigReader::check_meaning() const {
  if (config_.has("quantization_config"))
    throw data_error(
        fmt::format(
            "{}: the checkpoint is quantised (\"quantization_config\"), which is not supported",
            config_.where()),
        "import the original f16 or bf16 checkpoint and let --weights convert it");
  const std::set<std::string> silent = keys_without_question();
  std::string unknown;
  for (const auto& [key, value] : config_.json().items()) {
    if (silent.contains(key)) continue;
    if (const auto own = family_.accepted.find(key); own != family_.accepted.end()) {
      check_accepted(key, value, own->second);
    } else if (const auto common = kAcceptedAnywhere.find(key); common != kAcceptedAnywhere.end()) {
      check_accepted(key, value, common->second);
    } else if (key == "layer_types" && value.is_array()) {
      for (const Json& kind : value) check_accepted(key, kind, {"full_attention"});
    } else {
      unknown += (unknown.empty() ? "" : ", ") + quote_name(key);
    }
  }
  // Hugging Face's class would not read them either; still somebody may have meant something by
  // them.
  if (!unknown.empty()) spdlog::warn("{}: ignoring unknown keys {}", config_.where(), unknown);
}

}  // namespace

ModelSpec resolve_config(const Json& config, const Json* generation, const std::string& where) {
  const JsonObject object(config, where);
  const Family& family = find_family(object);
  ConfigReader reader(object, family);
  reader.check_meaning();
  Json spec = reader.read();
  if (generation != nullptr) {
    const JsonObject overrides(*generation, "generation_config.json");
    if (overrides.has("eos_token_id")) spec["eos_token_ids"] = token_ids(overrides, "eos_token_id");
  }
  return model_spec_from_json(spec, where);
}

}  // namespace stagecoach
