#include "base/quote.h"

#include "base/json.h"

namespace stagecoach {

std::string quote_name(std::string_view name) {
  constexpr std::size_t kLongest = 120;
  std::string text = Json(std::string(name)).dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > kLongest) text = text.substr(0, kLongest - 4) + "...\"";
  return text;
}

std::string quote_value(std::string_view value) {
  const std::string quoted = quote_name(value);
  return "'" + quoted.substr(1, quoted.size() - 2) + "'";
}

}  // namespace stagecoach
