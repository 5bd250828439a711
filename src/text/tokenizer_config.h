// The files beside tokenizer.json or vocab.json, as Hugging Face transformers writes them:
// tokenizer_config.json, special_tokens_map.json, added_tokens.json.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/added_token_table.h"

namespace stagecoach {

class TokenizerConfig {
 public:
  // Reads those of the files that exist.
  explicit TokenizerConfig(const std::filesystem::path& directory);

  // Absent flags are false, as transformers has them for GPT-2's kind of tokenizer.
  bool flag(const char* key) const;
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

  std::filesystem::path directory_;
  Json config_ = Json::object();
  Json added_tokens_ = Json::object();
  std::vector<Special> specials_;
};

// Whether the file exists; a folder that may not be read is an error.
bool file_exists(const std::filesystem::path& path);

}  // namespace stagecoach
