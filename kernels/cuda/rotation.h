// Rotary embedding of a pair, in device code: RotaryArgs in kernels/include/ops.h. Rounded as it
// stands here in every kernel: a compiler that fuses multiplications has nothing left to fuse.
#pragma once

#include "kernels/cuda/launch.h"
#include "kernels/include/ops.h"

namespace stagecoach::cuda {

__device__ inline float rotated_first(float a, float b, float c, float s) {
  return fmaf(a, c, -(b * s));
}
__device__ inline float rotated_second(float a, float b, float c, float s) {
  return fmaf(b, c, a * s);
}

// In place: pair `index` of heads · rotary_dim / 2 in a row.
__device__ inline void rotate_pair(const RotaryArgs& args, std::int64_t row, std::int64_t index) {
  const std::int64_t half = args.rotary_dim / 2, i = index % half;
  const float c = args.cos[row * half + i], s = args.sin[row * half + i];
  float* const x = args.x + row * args.x_stride + index / half * args.head_dim + i;
  const float a = x[0], b = x[half];
  x[0] = rotated_first(a, b, c, s);
  x[half] = rotated_second(a, b, c, s);
}

// What rotation makes of dimension d of a head, which stays as it is.
__device__ inline float rotated(const RotaryArgs& args, std::int64_t row, const float* head,
                                std::int64_t d) {
  const std::int64_t half = args.rotary_dim / 2;
  if (d >= 2 * half) return head[d];
  const std::int64_t i = d % half;
  const float c = args.cos[row * half + i], s = args.sin[row * half + i];
  return d < half ? rotated_first(head[i], head[i + half], c, s)
                  : rotated_second(head[i], head[i + half], c, s);
}

}  // namespace stagecoach::cuda
