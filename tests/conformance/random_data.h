// Fresh data for conformance tests, the same in every run.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace stagecoach {

using Floats = std::vector<float>;

class RandomData {
 protected:
  explicit RandomData(std::uint32_t seed) : generator_(seed) {}

  Floats random(std::int64_t count, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    Floats values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(generator_);
    return values;
  }
  std::int64_t uniform(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(generator_);
  }

  std::mt19937 generator_;
};

}  // namespace stagecoach
