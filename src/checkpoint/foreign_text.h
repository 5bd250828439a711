// What foreign files say, in a form that errors can print.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace stagecoach {

// A name out of a foreign file, quoted, escaped to ASCII and cut to a printable length: hostile
// names must not reach a terminal as they are.
std::string quote_name(std::string_view name);

// "[3, 4]".
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace stagecoach
