// Fields of CSV files as in RFC 4180.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace stagecoach {

inline std::string csv_field(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted.append(c == '"' ? 2 : 1, c);
  return quoted + '"';
}

// fmt prints the shortest text that reads back as the same double.
template <typename Number>
requires std::is_arithmetic_v<Number> std::string csv_field(Number value) {
  return fmt::format("{}", value);
}

// Empty: not known.
template <typename Number>
std::string csv_field(const std::optional<Number>& value) {
  return value ? csv_field(*value) : std::string();
}

}  // namespace stagecoach
