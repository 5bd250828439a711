// The byte alphabet of GPT-2: each byte has a printable character, so that vocabularies are text.
// Source: https://github.com/openai/gpt-2 (encoder.py, bytes_to_unicode).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stagecoach {

// Space becomes U+0120, newline U+010A; printable Latin-1 characters stand for themselves.
char32_t byte_level_character(std::uint8_t byte);
std::optional<std::uint8_t> byte_level_byte(char32_t character);

std::string to_byte_level(std::string_view bytes);
// A token with any character outside the alphabet (an added token) stands for its own UTF-8.
std::string from_byte_level(std::string_view token);

}  // namespace stagecoach
