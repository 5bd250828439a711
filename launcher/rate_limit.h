// So many bytes a second, of all connections of an agent together.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>

namespace stagecoach {

class RateLimit {
 public:
  explicit RateLimit(double bytes_per_second) : rate_(bytes_per_second) {}  // 0: no limit

  // Sleeps until `bytes` more may go. Thread-safe.
  void take(std::int64_t bytes);

 private:
  using Clock = std::chrono::steady_clock;
  const double rate_;
  std::mutex mutex_;
  Clock::time_point free_at_ = Clock::now();
};

}  // namespace stagecoach
