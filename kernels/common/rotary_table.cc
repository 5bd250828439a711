#include "kernels/include/ops.h"
#include "kernels/include/portable_math.h"

namespace stagecoach {

void rotary_table(const std::int64_t* positions, std::int64_t rows, const float* inv_freq,
                  std::int64_t half, float* cos, float* sin) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions[row]) * inv_freq[i];
      double sin_angle, cos_angle;
      portable_sincos(static_cast<double>(angle), &sin_angle, &cos_angle);
      cos[row * half + i] = static_cast<float>(cos_angle);
      sin[row * half + i] = static_cast<float>(sin_angle);
    }
}

}  // namespace stagecoach
