#pragma once

#include <algorithm>
#include <vector>

namespace stagecoach {

// Of an even number of values the mean of the two in the middle; 0 of none.
template <typename Number>
Number median(std::vector<Number> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const Number low = values[(values.size() - 1) / 2], high = values[values.size() / 2];
  return low + (high - low) / 2;
}

}  // namespace stagecoach
