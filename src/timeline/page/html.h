// The little that our pages need of HTML: escaping, numbers for people, and a page that stands
// alone, with its style sheet and script inside.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace stagecoach {

// Safe as text and inside a quoted attribute, whatever it holds: & < > " ' as entities, control
// characters and broken UTF-8 as U+FFFD.
std::string html_escape(std::string_view text);

// A whole page. `title` is escaped here, `body` is HTML. It loads nothing, and its content policy
// tells browsers not to let it.
std::string html_page(std::string_view title, std::string_view body);

// "1.23 ms": three digits, in the unit that suits.
std::string format_duration(double ns);
inline std::string format_duration(std::int64_t ns) {
  return format_duration(static_cast<double>(ns));
}
std::string format_ms(double ms);

}  // namespace stagecoach
