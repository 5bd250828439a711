#include "text/pattern.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "text/unicode.h"

namespace stagecoach {
namespace {

// The GPT-2 expression and its descendants are one list of alternatives with a few switches:
// contractions, a word, digits, symbols, white space. Each character is part of some match.
struct WordRules {
  bool any_case_contractions = false;
  bool any_word_prefix = false;  // [^\r\n\p{L}\p{N}]? before a word instead of one space
  bool space_before_digits = false;
  std::size_t most_digits = 0;         // of one match
  bool symbols_take_newlines = false;  // [\r\n]* after symbols
  bool lines_end_pieces = false;       // \s*[\r\n]+ before the white space rules
};

bool is_line_end(char32_t c) {
  return c == '\r' || c == '\n';
}
bool is_symbol(char32_t c) {
  return !is_white_space(c) && !is_letter(c) && !is_number(c);
}

class Scanner {
 public:
  Scanner(std::string_view text, std::size_t begin, const WordRules& rules)
      : text_(text), begin_(begin), rules_(rules) {}

  std::size_t match() const {
    const std::size_t end = first_alternative();
    return end - begin_;
  }

 private:
  // Each alternative gives the end of its match, begin_ meaning none.
  std::size_t first_alternative() const {
    if (const std::size_t end = contraction(); end != begin_) return end;
    if (const std::size_t end = word(); end != begin_) return end;
    if (const std::size_t end = digits(); end != begin_) return end;
    if (const std::size_t end = symbols(); end != begin_) return end;
    return white_space();
  }

  char32_t at(std::size_t position, std::size_t& next) const {
    const CodePoint c = code_point_at(text_, position);
    next = position + c.bytes;
    return c.value;
  }

  template <typename Predicate>
  std::size_t run(std::size_t position, Predicate in_run,
                  std::size_t most = std::numeric_limits<std::size_t>::max()) const {
    for (std::size_t count = 0; position < text_.size() && count < most; ++count) {
      std::size_t next = 0;
      if (!in_run(at(position, next))) break;
      position = next;
    }
    return position;
  }

  std::size_t after_space() const { return begin_ + (text_[begin_] == ' ' ? 1 : 0); }

  std::size_t contraction() const {
    static constexpr std::array<std::string_view, 7> kEndings = {"s", "t",  "re", "ve",
                                                                 "m", "ll", "d"};
    if (text_[begin_] != '\'') return begin_;
    for (const std::string_view ending : kEndings) {
      if (const std::size_t end = letters(begin_ + 1, ending)) return end;
    }
    return begin_;
  }

  std::size_t letters(std::size_t position, std::string_view expected) const {
    for (const char letter : expected) {
      if (position == text_.size()) return 0;
      std::size_t next = 0;
      char32_t c = at(position, next);
      if (rules_.any_case_contractions) {
        if (c >= 'A' && c <= 'Z') c |= 0x20;
        if (c == 0x17F) c = 's';  // the long s, whose case folding is s
      }
      if (c != static_cast<char32_t>(letter)) return 0;
      position = next;
    }
    return position;
  }

  std::size_t word() const {
    std::size_t letters_begin = after_space();
    if (rules_.any_word_prefix) {
      std::size_t next = 0;
      const char32_t c = at(begin_, next);
      letters_begin = is_letter(c) || is_number(c) || is_line_end(c) ? begin_ : next;
    }
    const std::size_t end = run(letters_begin, is_letter);
    return end == letters_begin ? begin_ : end;
  }

  std::size_t digits() const {
    const std::size_t digits_begin = rules_.space_before_digits ? after_space() : begin_;
    const std::size_t end = run(digits_begin, is_number, rules_.most_digits);
    return end == digits_begin ? begin_ : end;
  }

  std::size_t symbols() const {
    const std::size_t symbols_begin = after_space();
    const std::size_t end = run(symbols_begin, is_symbol);
    if (end == symbols_begin) return begin_;
    return rules_.symbols_take_newlines ? run(end, is_line_end) : end;
  }

  // \s*[\r\n]+ reaches past the last line end of the run; \s+(?!\S) leaves one character of a run
  // that something follows, so that " word" keeps its space; \s+ takes what is left.
  std::size_t white_space() const {
    const std::size_t end = run(begin_, is_white_space);
    if (rules_.lines_end_pieces) {
      const std::size_t last = text_.substr(begin_, end - begin_).find_last_of("\r\n");
      if (last != std::string_view::npos) return begin_ + last + 1;
    }
    if (end == text_.size()) return end;
    const std::size_t shorter = end - code_point_before(text_, end).bytes;
    return shorter == begin_ ? end : shorter;
  }

  std::string_view text_;
  std::size_t begin_;
  const WordRules& rules_;
};

Pattern word_pattern(const WordRules& rules) {
  return [rules](std::string_view text, std::size_t position) {
    return Scanner(text, position, rules).match();
  };
}

constexpr std::size_t kUnlimited = std::numeric_limits<std::size_t>::max();
constexpr WordRules kGpt2Rules = {.space_before_digits = true, .most_digits = kUnlimited};

constexpr WordRules modern_rules(std::size_t most_digits) {
  return {.any_case_contractions = true,
          .any_word_prefix = true,
          .most_digits = most_digits,
          .symbols_take_newlines = true,
          .lines_end_pieces = true};
}

// " ?[^(\s|[.,!?…。，、।۔،])]+", BLOOM's: the inner brackets and bars are members of one big class.
bool is_bloom_character(char32_t c) {
  return !is_white_space(c) &&
         std::u32string_view(U"(|.,!?…。，、।۔،)").find(c) == std::u32string_view::npos;
}

std::size_t bloom_match(std::string_view text, std::size_t position) {
  const std::size_t begin = position + (text[position] == ' ' ? 1 : 0);
  std::size_t end = begin;
  while (end < text.size()) {
    const CodePoint c = code_point_at(text, end);
    if (!is_bloom_character(c.value)) break;
    end += c.bytes;
  }
  return end == begin ? 0 : end - position;
}

std::size_t three_digits_match(std::string_view text, std::size_t position) {
  const std::string_view head = text.substr(position, 3);
  const bool digits =
      std::all_of(head.begin(), head.end(), [](char c) { return c >= '0' && c <= '9'; });
  return head.size() == 3 && digits ? 3 : 0;
}

struct Span {
  Range range;
  bool is_match = false;
};

std::vector<Span> find_matches(std::string_view text, const Split& split) {
  std::vector<Span> spans;
  std::size_t gap_begin = 0;
  const auto close_gap = [&](std::size_t end) {
    if (gap_begin < end) spans.push_back({{gap_begin, end}, split.invert});
  };
  for (std::size_t position = 0; position < text.size();) {
    const std::size_t length = split.pattern(text, position);
    if (length == 0) {
      position += code_point_at(text, position).bytes;
      continue;
    }
    close_gap(position);
    spans.push_back({{position, position + length}, !split.invert});
    position += length;
    gap_begin = position;
  }
  close_gap(text.size());
  return spans;
}

// Whether `span` joins its neighbour on the side from which the spans are walked. A match joins
// what is not a match, once; Contiguous joins like with like.
bool joins(SplitBehavior behavior, const Span& neighbour, const Span& span) {
  if (behavior == SplitBehavior::kContiguous) return span.is_match == neighbour.is_match;
  return span.is_match && !neighbour.is_match;
}

}  // namespace

Pattern literal_pattern(std::string literal) {
  return [literal = std::move(literal)](std::string_view text, std::size_t position) {
    return text.substr(position).starts_with(literal) ? literal.size() : 0;
  };
}

Pattern character_pattern(bool (*in_class)(char32_t)) {
  return [in_class](std::string_view text, std::size_t position) {
    const CodePoint c = code_point_at(text, position);
    return in_class(c.value) ? c.bytes : 0;
  };
}

Pattern gpt2_pattern() {
  return word_pattern(kGpt2Rules);
}

std::optional<Pattern> regex_pattern(std::string_view regex) {
  if (regex == R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)")
    return gpt2_pattern();
  // Llama 3 and those after it, then Qwen 2 and those after it.
  if (regex ==
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")
    return word_pattern(modern_rules(3));
  if (regex ==
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)")
    return word_pattern(modern_rules(1));
  if (regex == R"( ?[^(\s|[.,!?…。，、।۔،])]+)") return Pattern(bloom_match);
  if (regex == R"([0-9][0-9][0-9])") return Pattern(three_digits_match);  // Falcon
  return std::nullopt;
}

std::vector<Range> split_ranges(std::string_view text, const Split& split) {
  std::vector<Span> spans = find_matches(text, split);
  std::vector<Range> ranges;
  ranges.reserve(spans.size());
  if (split.behavior == SplitBehavior::kIsolated || split.behavior == SplitBehavior::kRemoved) {
    for (const Span& span : spans) {
      if (split.behavior == SplitBehavior::kIsolated || !span.is_match)
        ranges.push_back(span.range);
    }
    return ranges;
  }
  // MergedWithNext is MergedWithPrevious seen from the end.
  const bool backwards = split.behavior == SplitBehavior::kMergedWithNext;
  if (backwards) std::reverse(spans.begin(), spans.end());
  for (std::size_t i = 0; i < spans.size(); ++i) {
    if (i == 0 || !joins(split.behavior, spans[i - 1], spans[i]))
      ranges.push_back(spans[i].range);
    else if (backwards)
      ranges.back().begin = spans[i].range.begin;
    else
      ranges.back().end = spans[i].range.end;
  }
  if (backwards) std::reverse(ranges.begin(), ranges.end());
  return ranges;
}

}  // namespace stagecoach
