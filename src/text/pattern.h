// What a pre-tokenizer splits at: literals, classes of characters, and the regular expressions that
// published tokenizers use, each recognised by its exact text and scanned by hand. A general regex
// engine would be slower, and every engine has its own idea of Unicode, \s and case.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

// Length of the match that begins exactly at `position` of valid UTF-8; 0: no match there.
using Pattern = std::function<std::size_t(std::string_view text, std::size_t position)>;

Pattern literal_pattern(std::string literal);                  // never empty
Pattern character_pattern(bool (*in_class)(char32_t));         // single characters of the class
std::optional<Pattern> regex_pattern(std::string_view regex);  // empty: not one of those known
Pattern gpt2_pattern();

// What happens to the matches (`tokenizers`' SplitDelimiterBehavior).
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct Range {
  std::size_t begin = 0;
  std::size_t end = 0;
};

struct Split {
  Pattern pattern = {};
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;  // what lies between the matches takes their place
};

// The pieces of `text`, in order, none empty.
std::vector<Range> split_ranges(std::string_view text, const Split& split);

}  // namespace stagecoach
