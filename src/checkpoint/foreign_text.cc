#include "checkpoint/foreign_text.h"

#include <fmt/ranges.h>

namespace stagecoach {

std::string shape_text(const std::vector<std::int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace stagecoach
