#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/probe/probe.h"

namespace stagecoach {

// Threads that begin a piece of work together and are timed.
class Crew {
 public:
  explicit Crew(int threads) : times_(static_cast<std::size_t>(threads)), together_(threads) {
    for (int t = 1; t < threads; ++t)
      others_.emplace_back([this, t](const std::stop_token& stop) {
        for (;;) {
          together_.arrive_and_wait();
          if (stop.stop_requested()) return;
          work_(t);
          together_.arrive_and_wait();
        }
      });
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() {
    for (auto& thread : others_) thread.request_stop();
    together_.arrive_and_wait();
  }

  int threads() const { return static_cast<int>(times_.size()); }

  // Runs run(begin, end) on every thread's share of [0, items). Seconds: of one thread its
  // processor time, of several the time of day from the first begin to the last end.
  template <typename Run>
  double run(std::int64_t items, const Run& run) {
    work_ = [&](int thread) {
      Times& times = times_[static_cast<std::size_t>(thread)];
      times.begin = Clock::now();
      run(items * thread / threads(), items * (thread + 1) / threads());
      times.end = Clock::now();
    };
    const double begin = thread_seconds();
    together_.arrive_and_wait();
    work_(0);
    together_.arrive_and_wait();
    if (threads() == 1) return thread_seconds() - begin;
    Times all = times_[0];
    for (const Times& times : times_) {
      all.begin = std::min(all.begin, times.begin);
      all.end = std::max(all.end, times.end);
    }
    return std::chrono::duration<double>(all.end - all.begin).count();
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Times {
    Clock::time_point begin, end;
  };

  std::vector<Times> times_;  // by thread
  std::barrier<> together_;
  std::function<void(int)> work_;
  std::vector<std::jthread> others_;
};

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace stagecoach
