#pragma once

#include <cstdint>
#include <limits>

namespace stagecoach {

// Spans come from other hosts: sums must not overflow even if they are nonsense.
inline void add_saturated(std::int64_t& sum, std::int64_t value) {
  if (__builtin_add_overflow(sum, value, &sum)) sum = std::numeric_limits<std::int64_t>::max();
}

}  // namespace stagecoach
