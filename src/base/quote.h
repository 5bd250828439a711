// What foreign files say, in a form that a terminal can take.
#pragma once

#include <string>
#include <string_view>

namespace stagecoach {

// A name out of a foreign file, quoted, escaped to ASCII and cut to a printable length: hostile
// names must not reach a terminal as they are.
std::string quote_name(std::string_view name);

// What somebody has typed, likewise, in single quotes.
std::string quote_value(std::string_view value);

}  // namespace stagecoach
