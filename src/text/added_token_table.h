// Added tokens as several files tell of them, gathered into one list without contradictions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"

namespace stagecoach {

class AddedTokenTable {
 public:
  explicit AddedTokenTable(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  // The first source to describe a token counts. Throws data_error when an id is out of range or
  // belongs to another token, or when a token has two ids. A token that the model's vocabulary
  // knows keeps the id it has there.
  void add(AddedToken token, std::int64_t id, const std::string& where);

  // Like add, with the id that the token has already; false when it has none.
  bool add_known(AddedToken token);

  std::optional<TokenId> id_of(const std::string& content) const;
  bool has_id(TokenId id) const;
  std::vector<AddedToken> take() { return std::move(tokens_); }

 private:
  const Vocabulary& vocabulary_;
  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, TokenId> ids_;
  std::unordered_map<TokenId, std::string> contents_;
};

}  // namespace stagecoach
