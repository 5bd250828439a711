// Between two looks of a thread that may be told to end.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace stagecoach {

// A second, or until soon after `stop` says so.
inline void pause_a_second(const std::atomic<bool>& stop) {
  constexpr auto kStep = std::chrono::milliseconds(100);
  for (auto slept = kStep; slept < std::chrono::seconds(1) && !stop; slept += kStep)
    std::this_thread::sleep_for(kStep);
}

}  // namespace stagecoach
