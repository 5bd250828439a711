#include "text/bpe.h"

#include <algorithm>
#include <limits>
#include <queue>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/quote.h"
#include "text/unicode.h"

namespace stagecoach {
namespace {

std::uint64_t pair_key(TokenId left, TokenId right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

// Calls `each` with both parts of every way to cut `text` between two characters.
template <typename Each>
void for_each_cut(std::string_view text, Each each) {
  for (std::size_t cut = code_point_at(text, 0).bytes; cut < text.size();
       cut += code_point_at(text, cut).bytes)
    each(text.substr(0, cut), text.substr(cut));
}

}  // namespace

std::size_t Vocabulary::Hash::operator()(std::string_view text) const {
  return static_cast<std::size_t>(xxh3(as_bytes(text)));
}

void Vocabulary::add(std::string token, std::int64_t id, const std::string& where) {
  if (id < 0 || id > std::numeric_limits<TokenId>::max())
    throw data_error(fmt::format("{}: the id of the token {} should be in 0..{}, found {}", where,
                                 quote_name(token), std::numeric_limits<TokenId>::max(), id));
  const auto narrow = static_cast<TokenId>(id);
  if (const std::string* other = token_of(narrow))
    throw data_error(fmt::format("{}: the id {} belongs to two tokens, {} and {}", where, id,
                                 quote_name(*other), quote_name(token)));
  const auto [entry, inserted] = ids_.emplace(std::move(token), narrow);
  if (!inserted)
    throw data_error(fmt::format("{}: the token {} has two ids, {} and {}", where,
                                 quote_name(entry->first), entry->second, id));
  tokens_.emplace(narrow, &entry->first);
  largest_id_ = std::max(largest_id_, narrow);
}

std::optional<TokenId> Vocabulary::id_of(std::string_view token) const {
  const auto entry = ids_.find(token);
  if (entry == ids_.end()) return std::nullopt;
  return entry->second;
}

const std::string* Vocabulary::token_of(TokenId id) const {
  const auto entry = tokens_.find(id);
  return entry == tokens_.end() ? nullptr : entry->second;
}

// Symbols form a list inside the vector, so that a merge costs O(1).
struct BpeModel::Symbol {
  TokenId id = 0;
  std::int32_t previous = -1;
  std::int32_t next = -1;
  bool removed = false;
};

BpeModel::BpeModel(Vocabulary vocabulary, const std::vector<Merge>& merges, BpeOptions options,
                   std::string where)
    : BpeModel(std::move(vocabulary), std::move(options), std::move(where)) {
  rules_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view left = merges[rank].first, right = merges[rank].second;
    const auto id = [&](std::string_view token) {
      if (const auto found = vocabulary_.id_of(token)) return *found;
      throw data_error(
          fmt::format("{}: merge {} ({} and {}) needs the token {}, which the "
                      "vocabulary lacks",
                      where_, rank, quote_name(left), quote_name(right), quote_name(token)));
    };
    const std::string merged = std::string(left) + std::string(right);
    rules_[pair_key(id(left), id(right))] = {static_cast<std::uint32_t>(rank), id(merged)};
  }
}

BpeModel BpeModel::from_scores(Vocabulary vocabulary, std::vector<ScoredPiece> pieces,
                               BpeOptions options, std::string where) {
  BpeModel model(std::move(vocabulary), std::move(options), std::move(where));
  std::sort(pieces.begin(), pieces.end(),
            [](const ScoredPiece& a, const ScoredPiece& b) { return a.score > b.score; });
  for (const ScoredPiece& piece : pieces) model.scored_.insert(piece.id);
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    if (i > 0 && pieces[i].score < pieces[i - 1].score) ++rank;
    model.add_rules(*model.vocabulary_.token_of(pieces[i].id), {rank, pieces[i].id});
  }
  return model;
}

BpeModel::BpeModel(Vocabulary vocabulary, BpeOptions options, std::string where)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)), where_(std::move(where)) {
  vocabulary_.for_each([&](const std::string& token, TokenId id) {
    if (token.empty()) return;
    const CodePoint first = code_point_at(token, 0);
    if (first.bytes == token.size()) characters_.emplace(first.value, id);
  });
  for (std::size_t byte = 0; byte < byte_tokens_.size(); ++byte)
    byte_tokens_[byte] = vocabulary_.id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1);
}

bool BpeModel::can_be_symbol(std::string_view part) const {
  if (code_point_at(part, 0).bytes == part.size()) return true;
  const auto id = vocabulary_.id_of(part);
  return id && scored_.contains(*id);
}

TokenId BpeModel::symbol_of(std::string_view part) {
  const CodePoint first = code_point_at(part, 0);
  if (first.bytes != part.size()) return *vocabulary_.id_of(part);
  const auto lone = static_cast<TokenId>(-2 - static_cast<std::int64_t>(lone_parts_.size()));
  const auto [entry, inserted] = characters_.emplace(first.value, lone);
  if (inserted) lone_parts_.push_back(first.value);
  return entry->second;
}

void BpeModel::add_rules(std::string_view piece, Rule rule) {
  for_each_cut(piece, [&](std::string_view left, std::string_view right) {
    if (can_be_symbol(left) && can_be_symbol(right))
      rules_[pair_key(symbol_of(left), symbol_of(right))] = rule;
  });
}

bool BpeModel::could_build(std::string_view token) const {
  bool could = false;
  for_each_cut(token, [&](std::string_view left, std::string_view right) {
    could = could || (can_be_symbol(left) && can_be_symbol(right));
  });
  return could;
}

const BpeModel::Rule* BpeModel::rule(TokenId left, TokenId right) const {
  const auto found = rules_.find(pair_key(left, right));
  return found == rules_.end() ? nullptr : &found->second;
}

TokenId BpeModel::unknown_id() const {
  const auto id = vocabulary_.id_of(options_.unknown_token);
  if (!id)
    throw data_error(
        fmt::format("{}: the text needs the unknown token {}, which the vocabulary lacks", where_,
                    quote_name(options_.unknown_token)));
  return *id;
}

std::vector<BpeModel::Symbol> BpeModel::symbols(std::string_view piece) const {
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  const auto add = [&](TokenId id) {
    const auto index = static_cast<std::int32_t>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({.id = id, .previous = index - 1});
  };
  // An unknown character waits until a known one follows, as in the `tokenizers` library; bytes
  // that fall back do not count as known there, and overtake it.
  bool unknown_waits = false;
  const auto flush_unknown = [&] {
    if (unknown_waits) add(unknown_id());
    unknown_waits = false;
  };
  const auto has_byte_token = [&](char byte) {
    return byte_tokens_[static_cast<unsigned char>(byte)] >= 0;
  };
  for (std::size_t i = 0; i < piece.size();) {
    const CodePoint c = code_point_at(piece, i);
    const std::string_view bytes = piece.substr(i, c.bytes);
    i += c.bytes;
    if (const auto known = characters_.find(c.value); known != characters_.end()) {
      flush_unknown();
      add(known->second);
    } else if (options_.byte_fallback && std::all_of(bytes.begin(), bytes.end(), has_byte_token)) {
      for (const char byte : bytes) add(byte_tokens_[static_cast<unsigned char>(byte)]);
    } else if (!options_.unknown_token.empty()) {
      if (!options_.fuse_unknown) flush_unknown();
      unknown_waits = true;
    }
  }
  flush_unknown();
  return symbols;
}

// Applies the rules to a list of symbols: lowest rank first, leftmost on ties.
class BpeModel::Merger {
 public:
  Merger(const BpeModel& model, std::vector<Symbol>& symbols) : model_(model), symbols_(symbols) {}

  void run() {
    std::vector<Candidate> all;
    for (std::size_t i = 0; i + 1 < symbols_.size(); ++i) {
      const auto left = static_cast<std::int32_t>(i);
      if (const Rule* rule = rule_at(left)) all.push_back({*rule, left});
    }
    queue_ = Queue(Later{}, std::move(all));
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      // Neighbours may have changed since the candidate was queued.
      if (symbols_[static_cast<std::size_t>(best.left)].removed) continue;
      const Rule* rule = rule_at(best.left);
      if (rule != nullptr && rule->merged == best.rule.merged) merge(best);
    }
  }

 private:
  struct Candidate {
    Rule rule;
    std::int32_t left;
  };
  struct Later {
    bool operator()(const Candidate& a, const Candidate& b) const {
      return std::pair(a.rule.rank, a.left) > std::pair(b.rule.rank, b.left);
    }
  };
  using Queue = std::priority_queue<Candidate, std::vector<Candidate>, Later>;

  Symbol& symbol(std::int32_t index) { return symbols_[static_cast<std::size_t>(index)]; }

  const Rule* rule_at(std::int32_t left) {
    const std::int32_t right = symbol(left).next;
    return right < 0 ? nullptr : model_.rule(symbol(left).id, symbol(right).id);
  }

  void merge(const Candidate& candidate) {
    Symbol& left = symbol(candidate.left);
    Symbol& right = symbol(left.next);
    left.id = candidate.rule.merged;
    left.next = right.next;
    right.removed = true;
    if (left.next >= 0) symbol(left.next).previous = candidate.left;
    offer(left.previous);
    offer(candidate.left);
  }

  void offer(std::int32_t left) {
    if (left < 0) return;
    if (const Rule* rule = rule_at(left)) queue_.push({*rule, left});
  }

  const BpeModel& model_;
  std::vector<Symbol>& symbols_;
  Queue queue_;
};

void BpeModel::encode(std::string_view piece, std::vector<TokenId>& ids) const {
  if (options_.ignore_merges) {
    if (const auto id = vocabulary_.id_of(piece)) {
      ids.push_back(*id);
      return;
    }
  }
  if (piece.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
    throw data_error(fmt::format(
        "a piece of text without a break has {} bytes, expected less than 2 GiB", piece.size()));
  std::vector<Symbol> list = symbols(piece);
  Merger(*this, list).run();
  const std::size_t begin = ids.size();
  for (const Symbol& symbol : list) {
    if (symbol.removed) continue;
    if (symbol.id >= 0)
      ids.push_back(symbol.id);
    else
      append_lone_part(symbol.id, ids);
  }
  if (lone_parts_.empty() || options_.byte_fallback || !options_.fuse_unknown) return;
  // Only now is it known which characters are left over, and so which unknown ones are neighbours.
  const TokenId unknown = unknown_id();
  const auto both = [unknown](TokenId a, TokenId b) { return a == unknown && b == unknown; };
  ids.erase(std::unique(ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end(), both),
            ids.end());
}

void BpeModel::append_lone_part(TokenId symbol, std::vector<TokenId>& ids) const {
  if (!options_.byte_fallback) {
    ids.push_back(unknown_id());
    return;
  }
  std::string bytes;
  append_code_point(bytes, lone_parts_[static_cast<std::size_t>(-2 - symbol)]);
  for (const char byte : bytes) ids.push_back(byte_tokens_[static_cast<unsigned char>(byte)]);
}

}  // namespace stagecoach
