#include "text/bpe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"

namespace stagecoach {
namespace {

using Ids = std::vector<TokenId>;
using Names = std::vector<std::string>;

Vocabulary vocabulary(const Names& names) {
  Vocabulary result;
  for (std::size_t i = 0; i < names.size(); ++i)
    result.add(names[i], static_cast<std::int64_t>(i), "test");
  return result;
}

Ids encode(const BpeModel& model, std::string_view text) {
  Ids ids;
  model.encode(text, ids);
  return ids;
}

Names tokens(const BpeModel& model, std::string_view text) {
  Names names;
  for (const TokenId id : encode(model, text)) names.push_back(*model.vocabulary().token_of(id));
  return names;
}

TEST(Bpe, LowestRankFirstThenLeftmost) {
  const BpeModel model(vocabulary({"a", "b", "c", "bc", "ab", "aa"}),
                       {{"b", "c"}, {"a", "b"}, {"a", "a"}}, {}, "test");
  EXPECT_EQ(tokens(model, "abc"), (Names{"a", "bc"}));
  EXPECT_EQ(tokens(model, "aaab"), (Names{"aa", "ab"}));
  EXPECT_EQ(tokens(model, "aaa"), (Names{"aa", "a"}));
  EXPECT_EQ(tokens(model, ""), Names{});
}

// The definition, in O(n²): find the best pair, merge its leftmost occurrence, start again.
Names merge_by_definition(std::string_view text,
                          const std::vector<std::pair<std::string, std::string>>& merges) {
  Names symbols;
  for (const char c : text) symbols.emplace_back(1, c);
  for (;;) {
    std::size_t best_rank = merges.size();
    std::size_t best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found =
          std::find(merges.begin(), merges.end(), std::pair(symbols[i], symbols[i + 1]));
      const auto rank = static_cast<std::size_t>(found - merges.begin());
      if (rank < best_rank) best_rank = rank, best = i;
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

TEST(Bpe, AgreesWithDefinition) {
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    Names names = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    std::set<std::string> seen(names.begin(), names.end());
    for (int i = 0; i < 20; ++i) {
      const std::string left = names[random() % names.size()];
      const std::string right = names[random() % names.size()];
      // One merge per result, as training makes them.
      if (left.size() + right.size() > 8 || !seen.insert(left + right).second) continue;
      merges.emplace_back(left, right);
      names.push_back(left + right);
    }
    const BpeModel model(vocabulary(names), {merges.begin(), merges.end()}, {}, "test");
    for (int i = 0; i < 20; ++i) {
      std::string text(random() % 40, 'a');
      for (char& c : text) c = static_cast<char>('a' + random() % 3);
      ASSERT_EQ(tokens(model, text), merge_by_definition(text, merges)) << text;
    }
  }
}

// A quadratic merge would take hours here.
TEST(Bpe, LongPiece) {
  Names names = {"a"};
  std::vector<Merge> merges;
  for (int i = 0; i < 10; ++i) names.push_back(names.back() + names.back());
  for (int i = 0; i < 10; ++i)
    merges.emplace_back(names[static_cast<std::size_t>(i)], names[static_cast<std::size_t>(i)]);
  const BpeModel model(vocabulary(names), merges, {}, "test");
  const Ids ids = encode(model, std::string((1 << 20) + 5, 'a'));
  EXPECT_EQ(ids.size(), 1024U + 2);
  EXPECT_EQ(ids.front(), 10);
  EXPECT_EQ(Ids(ids.end() - 2, ids.end()), (Ids{2, 0}));
}

TEST(Bpe, UnknownCharacters) {
  const Names names = {"?", "a", "<0xC3>", "<0xA9>"};
  const BpeModel drops(vocabulary(names), {}, {}, "test");
  EXPECT_EQ(tokens(drops, "aéa"), (Names{"a", "a"}));
  const BpeModel unknown(vocabulary(names), {}, {.unknown_token = "?"}, "test");
  EXPECT_EQ(tokens(unknown, "aééa"), (Names{"a", "?", "?", "a"}));
  const BpeModel fused(vocabulary(names), {}, {.unknown_token = "?", .fuse_unknown = true}, "test");
  EXPECT_EQ(tokens(fused, "aééa"), (Names{"a", "?", "a"}));
  const BpeModel bytes(vocabulary(names), {}, {.unknown_token = "?", .byte_fallback = true},
                       "test");
  EXPECT_EQ(tokens(bytes, "éà"), (Names{"<0xC3>", "<0xA9>", "?"}));
}

TEST(Bpe, UnknownTokenThatIsMissingIsAnErrorWhenNeeded) {
  const BpeModel model(vocabulary({"a"}), {}, {.unknown_token = "<unk>"}, "here.json");
  EXPECT_EQ(tokens(model, "a"), Names{"a"});
  EXPECT_THROW(encode(model, "b"), Error);
}

TEST(Bpe, IgnoreMergesTakesWholePieces) {
  const Names names = {"a", "b", "aba"};
  EXPECT_EQ(tokens(BpeModel(vocabulary(names), {}, {.ignore_merges = true}, "test"), "aba"),
            Names{"aba"});
  EXPECT_EQ(tokens(BpeModel(vocabulary(names), {}, {}, "test"), "aba"), (Names{"a", "b", "a"}));
}

TEST(Vocabulary, RefusesContradictions) {
  Vocabulary words = vocabulary({"a", "b"});
  EXPECT_THROW(words.add("c", 1, "test"), Error);
  EXPECT_THROW(words.add("a", 7, "test"), Error);
  EXPECT_THROW(words.add("c", -1, "test"), Error);
  EXPECT_THROW(words.add("c", std::int64_t{1} << 31, "test"), Error);
  words.add("huge", (std::int64_t{1} << 31) - 1, "test");  // costs no memory
  EXPECT_EQ(words.largest_id(), 2147483647);
  EXPECT_EQ(words.token_of(2), nullptr);
}

}  // namespace
}  // namespace stagecoach
