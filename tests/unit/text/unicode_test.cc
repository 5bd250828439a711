#include "text/unicode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "text/byte_level.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

// --- A second opinion on UTF-8, from arithmetic instead of a table of byte ranges ---

// Whether some scalar value's encoding begins with `bytes`: fill the missing bytes with the lowest
// and the highest continuation, and look for a value between the two that is allowed.
bool is_prefix_of_character(std::string_view bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (byte(0) < 0x80) return bytes.size() == 1;
  std::size_t length = 0;
  char32_t low = 0;
  if ((byte(0) & 0xE0) == 0xC0) length = 2, low = byte(0) & 0x1F;
  if ((byte(0) & 0xF0) == 0xE0) length = 3, low = byte(0) & 0x0F;
  if ((byte(0) & 0xF8) == 0xF0) length = 4, low = byte(0) & 0x07;
  if (length == 0 || bytes.size() > length) return false;
  char32_t high = low;
  for (std::size_t i = 1; i < length; ++i) {
    const bool given = i < bytes.size();
    if (given && (byte(i) & 0xC0) != 0x80) return false;
    low = low << 6 | (given ? byte(i) & 0x3F : 0x00);
    high = high << 6 | (given ? byte(i) & 0x3F : 0x3F);
  }
  const char32_t shortest = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
  low = std::max(low, shortest);
  high = std::min(high, char32_t{0x10FFFF});
  if (low > high) return false;
  return !(low >= 0xD800 && high <= 0xDFFF);
}

bool is_character(std::string_view bytes) {
  const auto lead = static_cast<unsigned char>(bytes[0]);
  const std::size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  return bytes.size() == length && is_prefix_of_character(bytes);
}

std::string reference_repair(std::string_view bytes) {
  std::string repaired;
  while (!bytes.empty()) {
    std::size_t longest = 0;
    for (std::size_t n = 1; n <= std::min<std::size_t>(4, bytes.size()); ++n) {
      if (is_prefix_of_character(bytes.substr(0, n))) longest = n;
    }
    if (longest > 0 && is_character(bytes.substr(0, longest)))
      repaired += bytes.substr(0, longest);
    else
      repaired += "\uFFFD";
    bytes.remove_prefix(std::max<std::size_t>(1, longest));
  }
  return repaired;
}

// Bytes that often come near to a character: uniform ones hardly ever do.
std::string random_bytes(std::mt19937& random) {
  static constexpr std::string_view kLikely =
      "a\x80\x8F\x90\x9F\xA0\xBF\xC0\xC2\xDF\xE0\xE2\xED\xEF\xF0\xF3\xF4\xF5\xFF";
  std::string bytes(random() % 12, '\0');
  for (char& byte : bytes)
    byte = random() % 4 == 0 ? static_cast<char>(random()) : kLikely[random() % kLikely.size()];
  return bytes;
}

TEST(Utf8, RepairAgreesWithReference) {
  std::mt19937 random(7);
  for (int i = 0; i < 200'000; ++i) {
    const std::string bytes = random_bytes(random);
    const std::string expected = reference_repair(bytes);
    ASSERT_EQ(replace_invalid_utf8(bytes), expected);
    ASSERT_EQ(is_valid_utf8(bytes), expected == bytes);
  }
}

TEST(Utf8, RepairInPiecesIsTheSame) {
  std::mt19937 random(8);
  for (int i = 0; i < 50'000; ++i) {
    const std::string bytes = random_bytes(random) + random_bytes(random);
    Utf8Repairer repairer;
    std::string repaired;
    for (std::size_t begin = 0; begin < bytes.size();) {
      const std::size_t size = random() % 4;
      repairer.push(std::string_view(bytes).substr(begin, size), repaired);
      ASSERT_TRUE(is_valid_utf8(repaired));
      begin += size;
    }
    repairer.finish(repaired);
    ASSERT_EQ(repaired, replace_invalid_utf8(bytes));
  }
}

TEST(Utf8, OneReplacementPerMaximalPrefix) {
  EXPECT_EQ(replace_invalid_utf8("a\xF0\x9F\x90"), "a\uFFFD");
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x90z"), "\uFFFDz");
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), "\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(replace_invalid_utf8(""), "");
}

TEST(Utf8, CodePointsSurviveTheRoundTrip) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    append_code_point(text, c);
    ASSERT_TRUE(is_character(text));
    ASSERT_EQ(code_point_at(text, 0).value, c);
    ASSERT_EQ(code_point_before(text, text.size()).value, c);
    ASSERT_EQ(code_point_at(text, 0).bytes, text.size());
  }
}

TEST(Unicode, WhiteSpaceIsTheProperty) {
  int members = 0;
  for (char32_t c = 0; c <= 0x10FFFF; ++c) members += is_white_space(c);
  EXPECT_EQ(members, 25);
  for (const char32_t c :
       {0x09, 0x0D, 0x20, 0x85, 0xA0, 0x1680, 0x2003, 0x2028, 0x202F, 0x205F, 0x3000})
    EXPECT_TRUE(is_white_space(c)) << static_cast<unsigned>(c);
  for (const char32_t c : {0x1C, 0x1F, 0x180E, 0x200B, 0x2060, 0xFEFF})
    EXPECT_FALSE(is_white_space(c)) << static_cast<unsigned>(c);
}

TEST(Unicode, Classes) {
  for (const char32_t c : U"azAZéΩя東한ªǅʰ")
    EXPECT_EQ(is_letter(c), c != 0) << static_cast<unsigned>(c);
  for (const char32_t c : U"09½²Ⅷ٣①") EXPECT_EQ(is_number(c), c != 0) << static_cast<unsigned>(c);
  for (const char32_t c : U"@[`{_ \u0301€") EXPECT_FALSE(is_letter(c) || is_number(c));
  for (const char32_t c : U"!$+<^`|~_。«")
    EXPECT_EQ(is_punctuation(c), c != 0) << static_cast<unsigned>(c);
  EXPECT_FALSE(is_punctuation(U'€'));
  for (const char32_t c : U"a9_\u0301Ⅷ‿Ⓐ\u200D")
    EXPECT_EQ(is_word(c), c != 0) << static_cast<unsigned>(c);
  for (const char32_t c : U"½-é²🐎") EXPECT_EQ(is_word(c), c == U'é') << static_cast<unsigned>(c);
}

TEST(Unicode, NfcComposes) {
  EXPECT_EQ(to_nfc("cafe\u0301"), "café");
  EXPECT_EQ(to_nfc("q\u0307\u0323"), "q\u0323\u0307");
  EXPECT_EQ(to_nfc("\u212B"), "Å");
  EXPECT_EQ(to_nfc("\u1112\u1161\u11AB"), "한");
  EXPECT_EQ(to_nfc(std::string("e\u0301\0x", 5)), std::string("é\0x", 4));
  EXPECT_EQ(to_nfc(""), "");
}

TEST(ByteLevel, AlphabetIsABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t c = byte_level_character(static_cast<std::uint8_t>(byte));
    EXPECT_FALSE(is_white_space(c)) << byte;
    EXPECT_EQ(byte_level_byte(c), byte);
    all.push_back(static_cast<char>(byte));
  }
  EXPECT_EQ(from_byte_level(to_byte_level(all)), all);
  EXPECT_EQ(to_byte_level(" a\n"), "ĠaĊ");
  EXPECT_EQ(from_byte_level("Ġ東"), "Ġ東");  // outside the alphabet: its own UTF-8
  EXPECT_FALSE(byte_level_byte(U'\u0144'));
}

}  // namespace
}  // namespace stagecoach
