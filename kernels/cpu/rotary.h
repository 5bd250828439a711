#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

inline void rotate_head(float* x, const float* cos, const float* sin, std::int64_t half) {
  for (std::int64_t i = 0; i < half; i += kLanes) {
    const std::int64_t n = half - i;
    const Vec c = load_first(cos + i, n);
    const Vec s = load_first(sin + i, n);
    const Vec first = load_first(x + i, n);
    const Vec second = load_first(x + half + i, n);
    // Plain products, as the reference has them: fusing one of the two would favour it.
    store_first(x + i, first * c - second * s, n);
    store_first(x + half + i, second * c + first * s, n);
  }
}

inline void rotary(const RotaryArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t half = args.rotary_dim / 2;
  for (std::int64_t row = begin; row < end; ++row)
    for (std::int64_t head = 0; head < args.heads; ++head)
      rotate_head(args.x + row * args.x_stride + head * args.head_dim, args.cos + row * half,
                  args.sin + row * half, half);
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
