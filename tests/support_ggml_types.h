// GGUF's Q8_0 and Q4_0 as their reference has them (ggml, quantize_row_q8_0_ref and
// quantize_row_q4_0_ref): what q8 and q4 are measured against. Values come in whole groups of 32.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/include/dtype.h"

namespace stagecoach {

inline std::vector<float> plain_q8_0(std::vector<float> values) {
  for (std::size_t group = 0; group + 32 <= values.size(); group += 32) {
    float largest = 0.0f;
    for (std::size_t i = group; i < group + 32; ++i)
      largest = std::max(largest, std::abs(values[i]));
    const float scale = largest / 127.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (std::size_t i = group; i < group + 32; ++i)
      values[i] = std::round(values[i] * inverse) * f16_to_f32(f32_to_f16(scale));
  }
  return values;
}

inline std::vector<float> plain_q4_0(std::vector<float> values) {
  for (std::size_t group = 0; group + 32 <= values.size(); group += 32) {
    float extreme = 0.0f;
    for (std::size_t i = group; i < group + 32; ++i)
      if (std::abs(values[i]) > std::abs(extreme)) extreme = values[i];
    const float scale = extreme / -8.0f;
    const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
    for (std::size_t i = group; i < group + 32; ++i) {
      const int quant = std::min(15, static_cast<int>(values[i] * inverse + 8.5f));
      values[i] = static_cast<float>(quant - 8) * f16_to_f32(f32_to_f16(scale));
    }
  }
  return values;
}

}  // namespace stagecoach
