// Byte-pair encoding of one piece of text: characters, then merges in order of their rank.
// Sennrich, Haddow, Birch 2016, https://arxiv.org/abs/1508.07909.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/tokenizer.h"

namespace stagecoach {

// Token strings ↔ ids. Ids may have holes and may be huge: nothing here is sized by an id.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(Vocabulary&&) = default;
  Vocabulary& operator=(Vocabulary&&) = default;

  // Throws data_error ("where: …") if the id is not in [0, 2^31) or either is taken.
  void add(std::string token, std::int64_t id, const std::string& where);

  std::optional<TokenId> id_of(std::string_view token) const;
  const std::string* token_of(TokenId id) const;      // null: no such id
  TokenId largest_id() const { return largest_id_; }  // -1 when empty
  std::size_t size() const { return ids_.size(); }

  template <typename Visit>
  void for_each(Visit visit) const {
    for (const auto& [token, id] : ids_) visit(token, id);
  }

 private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const;
  };
  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> ids_;
  std::unordered_map<TokenId, const std::string*> tokens_;  // keys of ids_, whose nodes never move
  TokenId largest_id_ = -1;
};

struct BpeOptions {
  std::string unknown_token = {};  // empty: characters without an id vanish
  bool fuse_unknown = false;       // neighbouring unknown characters become one token
  bool byte_fallback = false;      // characters without an id become <0x00>…<0xFF>
  bool ignore_merges = false;      // a piece that is a token is that token
};

using Merge = std::pair<std::string_view, std::string_view>;

// A token that its neighbouring halves make, whatever they are: SentencePiece's form of a merge.
struct ScoredPiece {
  TokenId id = 0;
  float score = 0;  // finite; the highest goes first, equal ones from left to right
};

class BpeModel {
 public:
  // merges[r] has rank r; of two equal ones the later counts. `where` names the source in errors.
  // Throws data_error when a merge names a token that the vocabulary lacks.
  BpeModel(Vocabulary vocabulary, const std::vector<Merge>& merges, BpeOptions options,
           std::string where);
  // Merges are all the ways of cutting a piece into two characters or pieces. Characters that have
  // no token of their own take part; the ones that are left over fall back as unknown ones, for
  // which the vocabulary must have what the options name: all bytes, or the unknown token.
  static BpeModel from_scores(Vocabulary vocabulary, std::vector<ScoredPiece> pieces,
                              BpeOptions options, std::string where);

  // Appends the ids of `piece`, valid UTF-8. O(n log n) in its length.
  void encode(std::string_view piece, std::vector<TokenId>& ids) const;

  // Whether some merge would make `token` of two symbols, if it were a piece with a score.
  bool could_build(std::string_view token) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Rule {
    std::uint32_t rank = 0;
    TokenId merged = 0;
  };
  struct Symbol;
  class Merger;

  BpeModel(Vocabulary vocabulary, BpeOptions options, std::string where);
  void add_rules(std::string_view piece, Rule rule);
  bool can_be_symbol(std::string_view part) const;
  TokenId symbol_of(std::string_view part);
  std::vector<Symbol> symbols(std::string_view piece) const;
  void append_lone_part(TokenId symbol, std::vector<TokenId>& ids) const;
  const Rule* rule(TokenId left, TokenId right) const;
  TokenId unknown_id() const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  std::string where_;
  std::unordered_map<char32_t, TokenId> characters_;
  std::unordered_set<TokenId> scored_;      // ids of the pieces, where merges come from scores
  std::vector<char32_t> lone_parts_;        // [i]: the symbol -2 - i, a character without a token
  std::array<TokenId, 256> byte_tokens_{};  // -1: the vocabulary lacks it
  std::unordered_map<std::uint64_t, Rule> rules_;  // left id << 32 | right id
};

}  // namespace stagecoach
