#include "text/unicode.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <cstdlib>
#include <memory>

#include "base/error.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

utf8proc_category_t category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool between(utf8proc_category_t c, utf8proc_category_t first, utf8proc_category_t last) {
  return c >= first && c <= last;
}

}  // namespace

// Table 3-7 of the Unicode standard: only the second byte has ranges narrower than 80..BF, which
// keep out overlong forms, surrogates and what lies above U+10FFFF.
Utf8Sequence classify_utf8(std::string_view bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Form::kComplete, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Form::kInvalid, 1};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned low = 0x80;
  unsigned high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {Utf8Form::kTruncated, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Form::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Form::kComplete, length};
}

CodePoint code_point_at(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t i) {
    return static_cast<char32_t>(static_cast<unsigned char>(text[position + i]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F),
          4};
}

CodePoint code_point_before(std::string_view text, std::size_t position) {
  do {
    --position;
  } while ((static_cast<unsigned char>(text[position]) & 0xC0) == 0x80);
  return code_point_at(text, position);
}

void append_code_point(std::string& text, char32_t c) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

std::size_t count_code_points(std::string_view text) {
  std::size_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

bool is_letter(char32_t c) {
  if (c < 0x80) return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
  return between(category(c), UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO);
}

bool is_number(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  return between(category(c), UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO);
}

bool is_punctuation(char32_t c) {
  if (c < 0x80) return c > ' ' && c < 0x7F && !is_letter(c) && !is_number(c);
  return between(category(c), UTF8PROC_CATEGORY_PC, UTF8PROC_CATEGORY_PO);
}

bool is_white_space(char32_t c) {
  // utf8proc's separators (Zs, Zl, Zp) lack the controls, so the property's 25 members stand here.
  if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0D);
  if (c < 0x1680) return c == 0x85 || c == 0xA0;
  return c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool is_word(char32_t c) {
  if (c < 0x80) return is_letter(c) || is_number(c) || c == '_';
  const utf8proc_category_t kind = category(c);
  if (between(kind, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_ME)) return true;  // L and M
  if (kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_PC)
    return true;
  // Join controls, and the symbols that have the Alphabetic property: circled and squared letters.
  return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
         (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

std::string to_nfc(std::string_view text) {
  // Every character below U+0300 is its own NFC, and so is a text of them.
  bool trivial = true;
  for (const char c : text) trivial = trivial && static_cast<unsigned char>(c) < 0xCC;
  if (trivial) return std::string(text);

  utf8proc_uint8_t* result = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &result,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (length == UTF8PROC_ERROR_NOMEM || length == UTF8PROC_ERROR_OVERFLOW)
    throw resource_error(
        fmt::format("not enough memory to normalise {} bytes of text", text.size()));
  if (length < 0)
    throw data_error(fmt::format("cannot normalise the text: {}", utf8proc_errmsg(length)));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(result, &std::free);
  return {reinterpret_cast<const char*>(result), static_cast<std::size_t>(length)};
}

void Utf8Repairer::push(std::string_view bytes, std::string& repaired) {
  const std::string joined = incomplete_.empty() ? std::string() : incomplete_ + std::string(bytes);
  std::string_view rest = incomplete_.empty() ? bytes : std::string_view(joined);
  incomplete_.clear();
  while (!rest.empty()) {
    const Utf8Sequence next = classify_utf8(rest);
    if (next.form == Utf8Form::kTruncated) {
      incomplete_ = rest;
      return;
    }
    repaired += next.form == Utf8Form::kComplete ? rest.substr(0, next.bytes) : kReplacement;
    rest.remove_prefix(next.bytes);
  }
}

void Utf8Repairer::finish(std::string& repaired) {
  if (!incomplete_.empty()) repaired += kReplacement;
  incomplete_.clear();
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Sequence next = classify_utf8(text);
    if (next.form != Utf8Form::kComplete) return false;
    text.remove_prefix(next.bytes);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string repaired;
  repaired.reserve(bytes.size());
  Utf8Repairer repairer;
  repairer.push(bytes, repaired);
  repairer.finish(repaired);
  return repaired;
}

}  // namespace stagecoach
