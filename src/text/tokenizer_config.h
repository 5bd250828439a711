// The files beside tokenizer.json or vocab.json, as Hugging Face transformers writes them:
// tokenizer_config.json, special_tokens_map.json, added_tokens.json.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/added_token_table.h"

namespace stagecoach {

class TokenizerConfig {
 public:
  // Takes its three files from among `files`, where they exist; `where` names the folder in errors.
  TokenizerConfig(const TokenizerFiles& files, const std::string& where);

  bool flag(const char* key, bool absent) const;
  std::string tokenizer_class() const;  // "" when it is not named

  // The content of "bos_token" or another role.
  std::optional<std::string> special_token(const std::string& role) const;

  // added_tokens_decoder, then added_tokens.json, then the special tokens that have an id already.
  void add_tokens_to(AddedTokenTable& table) const;

 private:
  struct Special {
    std::string role;
    AddedToken token;
  };

  void collect_specials(const Json& file, const std::string& where);
  void add_special(const std::string& role, const Json& value, const std::string& where);
  std::optional<AddedToken> special_with(const std::string& content) const;

  JsonObject config() const;

  std::string where_;
  Json config_ = Json::object();
  Json added_tokens_ = Json::object();
  std::vector<Special> specials_;
};

}  // namespace stagecoach
