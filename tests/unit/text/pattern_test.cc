#include "text/pattern.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace stagecoach {
namespace {

using Strings = std::vector<std::string>;

constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Strings pieces(std::string_view text, const Split& split) {
  Strings result;
  for (const Range& range : split_ranges(text, split))
    result.emplace_back(text.substr(range.begin, range.end - range.begin));
  return result;
}

Strings gpt2(std::string_view text) {
  return pieces(text, {.pattern = gpt2_pattern()});
}
Strings llama3(std::string_view text) {
  return pieces(text, {.pattern = *regex_pattern(kLlama3)});
}

TEST(Pattern, Gpt2) {
  EXPECT_EQ(gpt2("Hello  world's 12½!?\n\n x"),
            (Strings{"Hello", " ", " world", "'s", " 12½", "!?", "\n\n", " x"}));
  EXPECT_EQ(gpt2("I'LL 'tis"), (Strings{"I", "'", "LL", " '", "tis"}));
  EXPECT_EQ(gpt2("a \u0085\u00a0b  "), (Strings{"a", " \u0085", "\u00a0", "b", "  "}));
  EXPECT_EQ(gpt2("x\u180ey"), (Strings{"x", "\u180e", "y"}));  // no white space since Unicode 6.3
  EXPECT_EQ(gpt2(""), Strings{});
}

TEST(Pattern, Llama3) {
  EXPECT_EQ(llama3("I'LL it'\u017fx"), (Strings{"I", "'LL", " it", "'\u017f", "x"}));
  EXPECT_EQ(llama3("12345 .\n\n(x)\ty"), (Strings{"123", "45", " .\n\n", "(x", ")", "\ty"}));
  EXPECT_EQ(llama3("a \n \n  b   "), (Strings{"a", " \n \n", " ", " b", "   "}));
  EXPECT_EQ(llama3("e\u0301a"), (Strings{"e", "\u0301a"}));
}

TEST(Pattern, UnknownExpressionsAreNotGuessed) {
  EXPECT_TRUE(regex_pattern(kLlama3));
  EXPECT_FALSE(regex_pattern(std::string(kLlama3) + " "));
  EXPECT_FALSE(regex_pattern(R"(\w+|[^\w\s]+)"));
  EXPECT_FALSE(regex_pattern(""));
}

// The examples of SplitDelimiterBehavior in the documentation of `tokenizers`.
TEST(Pattern, Behaviors) {
  const auto split = [](SplitBehavior behavior, bool invert = false) {
    return pieces("the-final--countdown",
                  {.pattern = literal_pattern("-"), .behavior = behavior, .invert = invert});
  };
  EXPECT_EQ(split(SplitBehavior::kRemoved), (Strings{"the", "final", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kIsolated), (Strings{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithPrevious),
            (Strings{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kMergedWithNext), (Strings{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(split(SplitBehavior::kContiguous), (Strings{"the", "-", "final", "--", "countdown"}));
  EXPECT_EQ(split(SplitBehavior::kRemoved, true), (Strings{"-", "-", "-"}));
}

TEST(PreTokenizer, MetaspaceFirstPrependsOnlyAtTheStart) {
  const PreTokenizer first({MetaspaceStep{.prepend = MetaspaceStep::Prepend::kFirst}});
  const auto texts = [&](const std::string& text, bool at_start) {
    Strings result;
    for (const Piece& piece : first.apply({text, at_start})) result.push_back(piece.text);
    return result;
  };
  EXPECT_EQ(texts("a b", true), (Strings{"▁a", "▁b"}));
  EXPECT_EQ(texts("a b", false), (Strings{"a", "▁b"}));
  EXPECT_EQ(texts("  a", true), (Strings{"▁", "▁a"}));
  EXPECT_EQ(texts("", true), Strings{});
}

}  // namespace
}  // namespace stagecoach
