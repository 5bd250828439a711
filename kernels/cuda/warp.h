// What the lanes of a warp, and the warps of a block, add up together.
#pragma once

#include "kernels/cuda/launch.h"

namespace stagecoach::cuda {

// Every lane gets the sum. Lanes pair up in a fixed order: equal inputs give equal bits.
__device__ inline float warp_sum(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

__device__ inline float warp_max(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Every thread of a block of kWarps warps gets the sum. `scratch`: shared, kWarps floats, free for
// other uses after the next barrier.
template <int kWarps>
__device__ float block_sum(float value, float* scratch) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  value = warp_sum(value);
  __syncthreads();  // scratch may still be read, from the sum before
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int i = 0; i < kWarps; ++i) sum += scratch[i];
  return sum;
}

}  // namespace stagecoach::cuda
