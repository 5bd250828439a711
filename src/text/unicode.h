// UTF-8 and the Unicode properties that tokenizers' regular expressions are made of.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace stagecoach {

struct CodePoint {
  char32_t value = 0;
  std::size_t bytes = 0;  // 1..4
};

// The code point that begins at `position`, which must be a character boundary of valid UTF-8.
CodePoint code_point_at(std::string_view text, std::size_t position);
// The code point that ends just before `position` (> 0).
CodePoint code_point_before(std::string_view text, std::size_t position);
void append_code_point(std::string& text, char32_t code_point);
std::size_t count_code_points(std::string_view text);

// General categories are those of utf8proc's Unicode version (14 in 2.8.0); a newer `tokenizers`
// can differ only on characters assigned since.
bool is_letter(char32_t c);  // \p{L}
bool is_number(char32_t c);  // \p{N}
bool is_punctuation(
    char32_t c);  // \p{P} and ASCII's symbols, as the Punctuation pre-tokenizer has it
bool is_white_space(char32_t c);  // the White_Space property, \s: with U+0085, without U+180E
bool is_word(char32_t c);  // \w of Rust's regex crate, which decides about single_word tokens

// Normalization form C. Throws data_error if utf8proc refuses the text.
std::string to_nfc(std::string_view text);

enum class Utf8Form { kComplete, kTruncated, kInvalid };
struct Utf8Sequence {
  Utf8Form form = Utf8Form::kInvalid;
  std::size_t bytes = 1;  // of the character, or of the maximal prefix that could have become one
};
// What the first bytes are; `bytes` is not empty and may be anything.
Utf8Sequence classify_utf8(std::string_view bytes);

}  // namespace stagecoach
