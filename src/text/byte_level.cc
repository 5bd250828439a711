#include "text/byte_level.h"

#include <array>

#include "text/unicode.h"

namespace stagecoach {
namespace {

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

constexpr unsigned kCharacters = 0x100 + 68;  // 68 bytes do not stand for themselves

constexpr std::array<char32_t, 256> kFromByte = [] {
  std::array<char32_t, 256> table{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte)
    table[byte] = stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
  return table;
}();

constexpr std::array<std::int16_t, kCharacters> kToByte = [] {
  std::array<std::int16_t, kCharacters> table{};
  table.fill(-1);
  for (unsigned byte = 0; byte < 256; ++byte)
    table[kFromByte[byte]] = static_cast<std::int16_t>(byte);
  return table;
}();

}  // namespace

char32_t byte_level_character(std::uint8_t byte) {
  return kFromByte[byte];
}

std::optional<std::uint8_t> byte_level_byte(char32_t character) {
  if (character >= kCharacters || kToByte[character] < 0) return std::nullopt;
  return static_cast<std::uint8_t>(kToByte[character]);
}

std::string to_byte_level(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() + bytes.size() / 2);
  for (const char byte : bytes)
    append_code_point(text, kFromByte[static_cast<unsigned char>(byte)]);
  return text;
}

std::string from_byte_level(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (std::size_t i = 0; i < token.size();) {
    const CodePoint c = code_point_at(token, i);
    const auto byte = byte_level_byte(c.value);
    if (!byte) return std::string(token);
    bytes.push_back(static_cast<char>(*byte));
    i += c.bytes;
  }
  return bytes;
}

}  // namespace stagecoach
