#include "base/byte_size.h"

#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/quote.h"

namespace stagecoach {

std::int64_t parse_byte_size(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, double>, 10> kUnits{{
      {"", 1},
      {"B", 1},
      {"kB", 1e3},
      {"MB", 1e6},
      {"GB", 1e9},
      {"TB", 1e12},
      {"KiB", 0x1p10},
      {"MiB", 0x1p20},
      {"GiB", 0x1p30},
      {"TiB", 0x1p40},
  }};
  // Plain bytes are exact; a fraction of a byte is a typo, not a size.
  std::int64_t bytes = 0;
  const auto [last, plain] = std::from_chars(text.data(), text.data() + text.size(), bytes);
  if (plain == std::errc{} && last == text.data() + text.size() && bytes >= 0 &&
      bytes < std::int64_t{1} << 62)
    return bytes;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
  for (const auto& [name, factor] : kUnits) {
    const bool whole = factor > 1 || value == std::floor(value);
    if (error == std::errc{} && unit == name && whole && value >= 0 && value * factor < 0x1p62)
      return static_cast<std::int64_t>(value * factor);
  }
  throw usage_error(fmt::format("{} is not a size", quote_value(text)),
                    "write it like 8GiB, 500MB or 4096");
}

std::string format_bytes(std::int64_t bytes) {
  static constexpr std::array<const char*, 6> kUnits{"B", "kB", "MB", "GB", "TB", "PB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  if (unit == 0) return fmt::format("{} B", bytes);
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, kUnits[unit]);
}

}  // namespace stagecoach
