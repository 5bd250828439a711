// Elements of weights, keys and values in device code: how each storage type is read, and how
// float32 becomes it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/include/dtype.h"

namespace stagecoach::cuda {

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

template <typename T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
// Finite values beyond ±65504 become ±65504: one outlier must not turn a whole product into NaN.
template <>
__device__ inline __half from_float<__half>(float x) {
  constexpr float kLargest = 65504.0f;
  return __float2half_rn(isfinite(x) ? fminf(fmaxf(x, -kLargest), kLargest) : x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Byte j of a word, as a signed number.
__device__ inline int signed_byte(std::uint32_t word, int j) {
  return static_cast<std::int8_t>(word >> (8 * j));
}

}  // namespace stagecoach::cuda
