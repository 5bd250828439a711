// This machine's own limits on one core, so that a kernel's time can be given as a share of them.
#pragma once

#include <time.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace stagecoach {

// Processor time of this thread: on a shared machine the time of day also counts other people's
// work.
inline double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Median seconds of `repetitions` runs after one that is not counted.
template <typename Run>
double median_seconds(int repetitions, Run&& run) {
  std::vector<double> seconds;
  for (int i = 0; i <= repetitions; ++i) {
    const double begin = thread_seconds();
    run();
    seconds.push_back(thread_seconds() - begin);
  }
  seconds.erase(seconds.begin());
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

// Multiply-adds per second (each counts as two) of the instructions that `isa` uses, operands in
// registers.
double probe_flops(const std::string& isa);

// Bytes per second of reading `bytes` once, in order; meant to be far beyond the caches.
double probe_read_bandwidth(std::size_t bytes);

}  // namespace stagecoach
