// What foreign files say, in a form that errors can print.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/quote.h"

namespace stagecoach {

// "[3, 4]".
std::string shape_text(const std::vector<std::int64_t>& shape);

}  // namespace stagecoach
