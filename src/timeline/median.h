#pragma once

#include <algorithm>
#include <cmath>
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

struct Quartiles {
  double q1 = 0, median = 0, q3 = 0;
};

// Linear between order statistics (Hyndman and Fan's type 7, numpy's default), whose middle is the
// median above; zeros of none.
inline Quartiles quartiles(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double fraction) {
    const double place = fraction * static_cast<double>(values.size() - 1);
    const auto low = static_cast<std::size_t>(place);
    const std::size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (values[high] - values[low]) * (place - std::floor(place));
  };
  return {.q1 = at(0.25), .median = median(values), .q3 = at(0.75)};
}

}  // namespace stagecoach
