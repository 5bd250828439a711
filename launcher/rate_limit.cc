#include "launcher/rate_limit.h"

#include <algorithm>
#include <thread>

namespace stagecoach {

void RateLimit::take(std::int64_t bytes) {
  if (rate_ <= 0) return;
  Clock::time_point turn;
  {
    const std::lock_guard lock(mutex_);
    turn = std::max(free_at_, Clock::now());
    free_at_ = turn + std::chrono::duration_cast<Clock::duration>(
                          std::chrono::duration<double>(static_cast<double>(bytes) / rate_));
  }
  std::this_thread::sleep_until(turn);
}

}  // namespace stagecoach
