// What foreign files say, in a form that errors can print.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/quote.h"

namespace stagecoach {

// A foreign title as the name of a model: lower case, with "-" for all but letters, digits, "." and
// "_"; "model" where nothing is left.
std::string model_name_from(std::string_view title);

// "[3, 4]".
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace stagecoach
