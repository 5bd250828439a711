#include "text/tokenizer_config.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "text/tokenizer_json.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxConfigBytes = 64 << 20;
constexpr std::array<const char*, 7> kRoles = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};
// Lists or, in transformers 5, objects from names to tokens.
constexpr std::array<const char*, 2> kMoreTokens = {"additional_special_tokens",
                                                    "extra_special_tokens"};

Json read_object(const fs::path& path) {
  if (!file_exists(path)) return Json::object();
  Json json = read_json_file(path, kMaxConfigBytes);
  const JsonObject check(json, path.string());
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

bool file_exists(const fs::path& path) {
  std::error_code error;
  const bool exists = fs::exists(path, error);
  if (error)
    throw resource_error(fmt::format("cannot look at {}: {}", path.string(), error.message()));
  return exists;
}

TokenizerConfig::TokenizerConfig(const fs::path& directory)
    : directory_(directory),
      config_(read_object(directory / "tokenizer_config.json")),
      added_tokens_(read_object(directory / "added_tokens.json")) {
  collect_specials(config_, (directory / "tokenizer_config.json").string());
  const fs::path map = directory / "special_tokens_map.json";
  collect_specials(read_object(map), map.string());
}

bool TokenizerConfig::flag(const char* key) const {
  return JsonObject(config_, (directory_ / "tokenizer_config.json").string())
      .boolean_or(key, false);
}

std::string TokenizerConfig::tokenizer_class() const {
  return JsonObject(config_, (directory_ / "tokenizer_config.json").string())
      .string_or("tokenizer_class", "");
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
  const JsonObject config(config_, (directory_ / "tokenizer_config.json").string());
  if (config.has("added_tokens_decoder")) {
    const JsonObject decoder = config.object("added_tokens_decoder");
    for (const auto& [key, value] : decoder.json().items())
      table.add(parse_added_token(value, fmt::format("{}, {}", decoder.where(), key)),
                parse_key_id(key, decoder.where()), decoder.where());
  }
  const JsonObject added(added_tokens_, (directory_ / "added_tokens.json").string());
  for (const auto& [content, id] : added_tokens_.items()) {
    const AddedToken plain{.content = content, .normalized = true};
    table.add(special_with(content).value_or(plain), added.integer(content.c_str()), added.where());
  }
  for (const Special& special : specials_) {
    if (!table.add_known(special.token))
      spdlog::warn("{}: the {} \"{}\" has no id and will not be recognised", directory_.string(),
                   special.role, special.token.content);
  }
}

}  // namespace stagecoach
