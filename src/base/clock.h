#pragma once

#include <chrono>
#include <cstdint>

namespace stagecoach {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

// This host's monotonic clock. Clocks of different hosts differ: see timeline/clock_offset.h.
inline std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
      .count();
}

// The time of day, since 1970: for comparing with other hosts' and with people's clocks.
inline std::int64_t wall_clock_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

inline double seconds_since(std::int64_t begin_ns) {
  return static_cast<double>(now_ns() - begin_ns) * 1e-9;
}

}  // namespace stagecoach
