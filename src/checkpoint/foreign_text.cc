#include "checkpoint/foreign_text.h"

#include <cctype>

#include <fmt/ranges.h>

namespace stagecoach {

std::string model_name_from(std::string_view title) {
  std::string name(title);
  for (char& c : name) {
    const auto byte = static_cast<unsigned char>(c);
    c = std::isalnum(byte) || c == '.' || c == '_' ? static_cast<char>(std::tolower(byte)) : '-';
  }
  return name.empty() ? "model" : name;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace stagecoach
