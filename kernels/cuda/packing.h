// Rows as products read them (kernels/include/matmul_input.h), in device code: written by whatever
// kernel computes them, a warp 32 columns at a time.
//
// put(row, cols, k, x) is called by whole warps for every k below cols rounded up to 32, lane by
// lane; x is 0 from `cols` on.
#pragma once

#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"
#include "kernels/include/matmul_input.h"

namespace stagecoach::cuda {

// Columns that warps go through: whole groups, whatever the type.
__host__ __device__ constexpr std::int64_t packing_cols(std::int64_t cols) {
  return (cols + kGroupCols - 1) / kGroupCols * kGroupCols;
}

struct NotPacked {
  static __device__ void put(std::byte*, std::int64_t, std::int64_t, float) {}
};

// kF16, kBF16.
template <typename T>
struct PackPlain {
  static __device__ void put(std::byte* row, std::int64_t cols, std::int64_t k, float x) {
    if (k < cols + cols % 2) reinterpret_cast<T*>(row)[k] = from_float<T>(x);
  }
};

// kF32: float32 that has been through bfloat16.
struct PackRounded {
  static __device__ void put(std::byte* row, std::int64_t cols, std::int64_t k, float x) {
    if (k < cols) reinterpret_cast<float*>(row)[k] = to_float(from_float<__nv_bfloat16>(x));
  }
};

// kInt8: a warp makes a group.
struct PackGroups {
  static __device__ void put(std::byte* row, std::int64_t, std::int64_t k, float x) {
    const auto lane = static_cast<int>(k % kGroupCols);
    const bool finite = __all_sync(kAllLanes, isfinite(x));
    const float magnitude = warp_max(fabsf(x));
    float scale = 0.0f;
    int quant = 0;
    if (!finite) {
      scale = __int_as_float(0x7fc00000);
    } else if (magnitude >= kSmallestInputGroup) {
      scale = magnitude / 127.0f;
      quant = static_cast<int>(rintf(x * (127.0f / magnitude)));
    }
    int sum = quant;
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    InputGroup& packed = reinterpret_cast<InputGroup*>(row)[k / kGroupCols];
    packed.quant[lane] = static_cast<std::int8_t>(quant);
    if (lane == 0) {
      packed.scale = scale;
      packed.minus_8_sum = -8 * sum;
    }
  }
};

// Calls use(Packing{}) with what packs rows of `type`.
template <typename Use>
void with_packing(InputType type, const Use& use) {
  switch (type) {
    case InputType::kF32:
      return use(PackRounded{});
    case InputType::kF16:
      return use(PackPlain<__half>{});
    case InputType::kBF16:
      return use(PackPlain<__nv_bfloat16>{});
    case InputType::kInt8:
      return use(PackGroups{});
  }
}

}  // namespace stagecoach::cuda
