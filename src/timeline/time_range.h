#pragma once

#include <cstdint>

namespace stagecoach {

// A stretch of rank 0's clock.
struct TimeRange {
  std::int64_t begin_ns = 0, end_ns = 0;

  std::int64_t length() const { return end_ns - begin_ns; }
};

}  // namespace stagecoach
