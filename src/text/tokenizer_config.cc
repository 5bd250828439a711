#include "text/tokenizer_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"
#include "text/tokenizer_json.h"

namespace stagecoach {
namespace {

constexpr std::array<const char*, 7> kRoles = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};
// Lists or, in transformers 5, objects from names to tokens.
constexpr std::array<const char*, 2> kMoreTokens = {"additional_special_tokens",
                                                    "extra_special_tokens"};

Json parse_object(const TokenizerFiles& files, const char* name, const std::string& where) {
  const auto file = files.find(name);
  if (file == files.end()) return Json::object();
  const std::string source = fmt::format("{}/{}", where, name);
  Json json = parse_json(file->second, source);
  const JsonObject check(json, source);
  return json;
}

std::int64_t parse_key_id(const std::string& key, const std::string& where) {
  std::int64_t id = 0;
  const char* const end = key.data() + key.size();
  const auto [stop, error] = std::from_chars(key.data(), end, id);
  if (error != std::errc() || stop != end)
    throw data_error(fmt::format("{}: a key should be a token id, found \"{}\"", where, key));
  return id;
}

}  // namespace

TokenizerConfig::TokenizerConfig(const TokenizerFiles& files, const std::string& where)
    : where_(where),
      config_(parse_object(files, "tokenizer_config.json", where)),
      added_tokens_(parse_object(files, "added_tokens.json", where)) {
  collect_specials(config_, where + "/tokenizer_config.json");
  collect_specials(parse_object(files, "special_tokens_map.json", where),
                   where + "/special_tokens_map.json");
}

JsonObject TokenizerConfig::config() const {
  return {config_, where_ + "/tokenizer_config.json"};
}

bool TokenizerConfig::flag(const char* key, bool absent) const {
  return config().boolean_or(key, absent);
}

std::string TokenizerConfig::tokenizer_class() const {
  return config().string_or("tokenizer_class", "");
}

std::optional<std::string> TokenizerConfig::special_token(const std::string& role) const {
  const auto found = std::find_if(specials_.begin(), specials_.end(),
                                  [&](const Special& special) { return special.role == role; });
  if (found == specials_.end()) return std::nullopt;
  return found->token.content;
}

void TokenizerConfig::collect_specials(const Json& file, const std::string& where) {
  for (const char* role : kRoles) {
    const auto value = file.find(role);
    if (value != file.end() && !special_token(role)) add_special(role, *value, where);
  }
  for (const char* list : kMoreTokens) {
    const auto values = file.find(list);
    if (values == file.end() || values->is_null()) continue;
    if (!values->is_structured())
      throw data_error(fmt::format("{}: \"{}\" should be a list of tokens, found {}", where, list,
                                   values->type_name()));
    for (const Json& value : *values) add_special(list, value, where);
  }
}

void TokenizerConfig::add_special(const std::string& role, const Json& value,
                                  const std::string& where) {
  // Before version 4 of transformers was old, a role without a token was false or null.
  if (value.is_null() || value == false) return;
  AddedToken token;
  if (value.is_string())
    token.content = value.get<std::string>();
  else
    token = parse_added_token(value, fmt::format("{}: \"{}\"", where, role));
  token.special = true;
  token.normalized = value.is_object() && value.value("normalized", Json(false)) == true;
  specials_.push_back({role, std::move(token)});
}

std::optional<AddedToken> TokenizerConfig::special_with(const std::string& content) const {
  const auto found = std::find_if(specials_.begin(), specials_.end(), [&](const Special& special) {
    return special.token.content == content;
  });
  if (found == specials_.end()) return std::nullopt;
  return found->token;
}

void TokenizerConfig::add_tokens_to(AddedTokenTable& table) const {
  if (config().has("added_tokens_decoder")) {
    const JsonObject decoder = config().object("added_tokens_decoder");
    for (const auto& [key, value] : decoder.json().items())
      table.add(parse_added_token(value, fmt::format("{}, {}", decoder.where(), key)),
                parse_key_id(key, decoder.where()), decoder.where());
  }
  const JsonObject added(added_tokens_, where_ + "/added_tokens.json");
  for (const auto& [content, id] : added_tokens_.items()) {
    const AddedToken plain{.content = content, .normalized = true};
    table.add(special_with(content).value_or(plain), added.integer(content.c_str()), added.where());
  }
  for (const Special& special : specials_) {
    if (!table.add_known(special.token))
      spdlog::warn("{}: the {} {} has no id and will not be recognised", where_, special.role,
                   special.token.content);
  }
}

}  // namespace stagecoach
