#include "checkpoint/family.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "checkpoint/embedded_configs.h"
#include "checkpoint/foreign_text.h"

namespace stagecoach {
namespace {

// What resolve_config computes itself.
const std::set<std::string> kComputedFields = {"family", "architecture", "rotary_inv_freq",
                                               "alibi_slopes", "attention_scale"};

std::vector<std::string> strings_at(const JsonObject& object, const char* key) {
  std::vector<std::string> strings;
  for (const Json& item : object.array(key)) strings.push_back(item.get<std::string>());
  return strings;
}

// Either a fixed value, or {"keys", "old_keys", "default", "values", "off_when"}.
ConfigValue parse_value(const Json& json, const std::string& where) {
  if (!json.is_object()) return {.keys = {}, .old_keys = {}, .fallback = json};
  const JsonObject object(json, where);
  object.only({"keys", "old_keys", "default", "values", "off_when"});
  const auto strings = [&](const char* key) {
    return object.has(key) ? strings_at(object, key) : std::vector<std::string>{};
  };
  return {.keys = strings("keys"),
          .old_keys = strings("old_keys"),
          .fallback = object.at("default"),
          .values = object.has("values") ? object.at("values").get<std::map<std::string, Json>>()
                                         : std::map<std::string, Json>{},
          .off_when = strings("off_when")};
}

std::map<std::string, ConfigValue> parse_spec(const JsonObject& object) {
  std::map<std::string, ConfigValue> spec;
  const Json fields = to_json(ModelSpec{});
  for (const auto& [field, value] : object.json().items()) {
    if (!fields.contains(field) || kComputedFields.contains(field))
      throw data_error(fmt::format("{}: unknown axis \"{}\"", object.where(), field));
    spec.emplace(field, parse_value(value, fmt::format("{}: \"{}\"", object.where(), field)));
  }
  for (const auto& [field, value] : fields.items())
    if (!kComputedFields.contains(field)) object.at(field.c_str());
  return spec;
}

bool is_bias(TensorRole role) {
  return role_name(role).ends_with(".bias");
}

TensorPattern parse_pattern(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  object.only({"source", "spellings", "roles", "transposed", "interleaved_rotary", "fused_per_head",
               "skipped_rows"});
  TensorPattern pattern{
      .source = object.string("source"),
      .spellings =
          object.has("spellings") ? strings_at(object, "spellings") : std::vector<std::string>{},
      .roles = {},
      .transposed = object.boolean_or("transposed", false),
      .interleaved_rotary = object.boolean_or("interleaved_rotary", false),
      .fused_per_head = object.boolean_or("fused_per_head", false),
      .skipped_rows = object.has("skipped_rows") ? object.integer_in("skipped_rows", 1, 16) : 0};
  for (const std::string& name : strings_at(object, "roles")) {
    const auto role = parse_role(name);
    if (!role) throw data_error(fmt::format("{}: unknown role \"{}\"", where, name));
    if (pattern.transposed && is_bias(*role))
      throw data_error(fmt::format("{}: a vector cannot be transposed", where));
    pattern.roles.push_back(*role);
  }
  if (pattern.roles.empty()) throw data_error(fmt::format("{}: no roles", where));
  return pattern;
}

TensorNames parse_names(const JsonObject& object) {
  TensorNames names{.prefixes = strings_at(object, "prefixes"),
                    .tensors = {},
                    .dropped = strings_at(object, "dropped")};
  if (object.has("old_parts"))
    for (const auto& [old_part, part] : object.object("old_parts").json().items())
      names.old_parts.emplace_back(old_part, part.get<std::string>());
  for (const Json& pattern : object.array("tensors"))
    names.tensors.push_back(parse_pattern(pattern, object.where() + ": \"tensors\""));
  if (names.prefixes.empty()) throw data_error(fmt::format("{}: no prefixes", object.where()));
  return names;
}

std::map<std::string, std::string> parse_renames(const JsonObject& object) {
  std::map<std::string, std::string> renames;
  for (const auto& [from, to] : object.json().items()) renames.emplace(from, to.get<std::string>());
  return renames;
}

GgufDescription parse_gguf(const JsonObject& object) {
  object.only({"architectures", "when", "keys", "optional_keys", "flags", "config", "prefixes",
               "tensors", "dropped"});
  return {.architectures = strings_at(object, "architectures"),
          .when = object.string_or("when", ""),
          .keys = parse_renames(object.object("keys")),
          .optional_keys = parse_renames(object.object("optional_keys")),
          .flags = parse_renames(object.object("flags")),
          .config = object.object("config").json(),
          .names = parse_names(object)};
}

Family parse_checked(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  object.only({"name", "architectures", "model_types", "spec", "rotary", "accepted", "ignored",
               "prefixes", "tensors", "dropped", "old_parts", "gguf"});
  Family family{.name = object.string("name"),
                .architectures = strings_at(object, "architectures"),
                .model_types = strings_at(object, "model_types"),
                .spec = parse_spec(object.object("spec")),
                .rotary = std::nullopt,
                .accepted = {},
                .ignored = strings_at(object, "ignored"),
                .names = parse_names(object),
                .gguf = std::nullopt};
  if (object.has("gguf")) family.gguf = parse_gguf(object.object("gguf"));
  if (object.has("rotary")) {
    const JsonObject rotary = object.object("rotary");
    rotary.only({"theta", "scaling", "partial"});
    family.rotary = {.theta = parse_value(rotary.at("theta"), where + ": theta"),
                     .scaling = rotary.boolean("scaling")};
    if (rotary.has("partial"))
      family.rotary->partial = parse_value(rotary.at("partial"), where + ": partial");
  }
  for (const auto& [key, values] : object.object("accepted").json().items())
    family.accepted.emplace(key, values.get<std::vector<Json>>());
  return family;
}

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// GPT-J first came as a fork of transformers that gave GPT-Neo's class these keys. Without its
// config.json nothing says which of the fork's variants the weights are, so the user must.
std::string hint_for(const JsonObject& config) {
  if (config.string_or("model_type", "") != "gpt_neo") return {};
  if (config.has("rotary_dim") || config.has("rotary") || config.has("jax"))
    return "GPT-J as an early fork of transformers saved it: replace config.json by that of "
           "EleutherAI/gpt-j-6b (model_type gptj); the tensors' old names are understood";
  return "GPT-Neo's local attention is not GPT-J's: import a GPT-J or GPT-NeoX checkpoint";
}

Error unsupported(const JsonObject& config, const std::string& found) {
  std::string known;
  for (const Family& family : families())
    for (const std::string& name : family.architectures)
      known += (known.empty() ? "" : ", ") + name;
  return data_error(
      fmt::format("{}: {} is not supported; this build imports {}", config.where(), found, known),
      hint_for(config));
}

// The first of "architectures", or nothing where the key is missing or empty.
std::optional<std::string> architecture_of(const JsonObject& config) {
  if (!config.has("architectures")) return std::nullopt;
  const Json& list = config.array("architectures");
  if (list.empty()) return std::nullopt;
  if (!list[0].is_string())
    throw data_error(fmt::format("{}: \"architectures\" should hold names, found {}",
                                 config.where(), list[0].type_name()));
  return list[0].get<std::string>();
}

}  // namespace

Family parse_family(const Json& json, const std::string& where) {
  try {
    return parse_checked(json, where);
  } catch (const Error& error) {
    throw Error(ErrorKind::kInternal, error.what());
  } catch (const Json::exception& error) {
    throw Error(ErrorKind::kInternal, fmt::format("{}: {}", where, error.what()));
  }
}

const std::vector<Family>& families() {
  static const std::vector<Family> all = [] {
    std::vector<Family> parsed;
    for (const auto& [name, text] : embedded_models())
      parsed.push_back(parse_family(parse_json(text, std::string(name)), std::string(name)));
    return parsed;
  }();
  return all;
}

const Family& find_family(const JsonObject& config) {
  const auto architecture = architecture_of(config);
  const std::string model_type = config.string_or("model_type", "");
  if (!architecture && model_type.empty())
    throw unsupported(config, "a config with neither \"architectures\" nor \"model_type\"");
  for (const Family& family : families()) {
    const bool type_fits = contains(family.model_types, model_type);
    if (!architecture && type_fits) return family;
    if (!architecture || !contains(family.architectures, *architecture)) continue;
    // Hugging Face picks the code by model_type: one that contradicts the class changes the
    // mathematics.
    if (!model_type.empty() && !type_fits)
      throw unsupported(config, fmt::format("architecture {} with model_type {}",
                                            quote_name(*architecture), quote_name(model_type)));
    return family;
  }
  throw unsupported(config, architecture ? fmt::format("architecture {}", quote_name(*architecture))
                                         : fmt::format("model_type {}", quote_name(model_type)));
}

std::string expand_pattern(const std::string& pattern, const std::string& prefix,
                           std::int64_t layer) {
  std::string name = pattern;
  const auto fill = [&name](std::string_view placeholder, const std::string& value) {
    if (const auto at = name.find(placeholder); at != std::string::npos)
      name.replace(at, placeholder.size(), value);
  };
  fill("{prefix}", prefix);
  fill("{layer}", std::to_string(layer));
  return name;
}

}  // namespace stagecoach
