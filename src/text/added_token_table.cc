#include "text/added_token_table.h"

#include <limits>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "base/quote.h"

namespace stagecoach {

void AddedTokenTable::add(AddedToken token, std::int64_t id, const std::string& where) {
  if (token.content.empty()) return;  // matches nowhere
  if (id < 0 || id > std::numeric_limits<TokenId>::max())
    throw data_error(fmt::format("{}: the id of the added token {} should be in 0..{}, found {}",
                                 where, quote_name(token.content),
                                 std::numeric_limits<TokenId>::max(), id));
  if (const auto known = vocabulary_.id_of(token.content); known && *known != id) {
    spdlog::warn("{}: the added token {} has the id {}, but {} in the vocabulary, which counts",
                 where, quote_name(token.content), id, *known);
    id = *known;
  }
  token.id = static_cast<TokenId>(id);
  if (const auto other = ids_.find(token.content); other != ids_.end()) {
    if (other->second == token.id) return;
    throw data_error(fmt::format("{}: the added token {} has two ids, {} and {}", where,
                                 quote_name(token.content), other->second, token.id));
  }
  const std::string* owner = vocabulary_.token_of(token.id);
  if (const auto other = contents_.find(token.id); other != contents_.end()) owner = &other->second;
  if (owner != nullptr && *owner != token.content)
    throw data_error(fmt::format("{}: the id {} belongs to two tokens, {} and {}", where, token.id,
                                 quote_name(*owner), quote_name(token.content)));
  ids_.emplace(token.content, token.id);
  contents_.emplace(token.id, token.content);
  tokens_.push_back(std::move(token));
}

bool AddedTokenTable::add_known(AddedToken token) {
  const auto id = id_of(token.content);
  if (id) add(std::move(token), *id, "special tokens");
  return id.has_value();
}

std::optional<TokenId> AddedTokenTable::id_of(const std::string& content) const {
  if (const auto found = ids_.find(content); found != ids_.end()) return found->second;
  return vocabulary_.id_of(content);
}

bool AddedTokenTable::has_id(TokenId id) const {
  return contents_.contains(id) || vocabulary_.token_of(id) != nullptr;
}

}  // namespace stagecoach
