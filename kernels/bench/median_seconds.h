#pragma once

#include <algorithm>
#include <vector>

#include "kernels/probe/probe.h"

namespace stagecoach {

// Median processor seconds of `repetitions` runs after one that is not counted.
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

}  // namespace stagecoach
