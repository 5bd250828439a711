// Keys and values in device code, by their type (kernels/include/kv_page.h). A head's page is read
// in groups of 32 dimensions, which is how q8 has its scales.
#pragma once

#include "kernels/cuda/elements.h"
#include "kernels/include/kv_page.h"

namespace stagecoach::cuda {

inline constexpr int kPageKeys = static_cast<int>(kKvPageTokens);
inline constexpr int kGroupDims = static_cast<int>(kKvGroupDims);

// float or __half.
template <typename T>
struct KvReader {
  // Key `key` in dimension d, less the scale that key_scale says.
  static __device__ float key(const std::byte* head, int d, int key) {
    return to_float(reinterpret_cast<const T*>(head)[d * kPageKeys + key]);
  }
  static __device__ float key_scale(const std::byte*, int, int) { return 1.0f; }
  static __device__ float value(const std::byte* head, int head_dim, int slot, int d) {
    return to_float(reinterpret_cast<const T*>(head)[slot * head_dim + d]);
  }
};

struct Q8Kv {};

template <>
struct KvReader<Q8Kv> {
  static __device__ const std::byte* group_of(const std::byte* head, int d) {
    return head + d / kGroupDims * kKvGroupBytes;
  }
  static __device__ float scale(const std::byte* group, int slot) {
    return to_float(reinterpret_cast<const __nv_bfloat16*>(group)[slot]);
  }
  static __device__ float key(const std::byte* head, int d, int key) {
    const std::byte* const quants = group_of(head, d) + kKvScalesBytes;
    return static_cast<float>(
        reinterpret_cast<const std::int8_t*>(quants)[d % kGroupDims * kPageKeys + key]);
  }
  static __device__ float key_scale(const std::byte* head, int d, int key) {
    return scale(group_of(head, d), key);
  }
  static __device__ float value(const std::byte* head, int head_dim, int slot, int d) {
    const std::byte* const group = group_of(head, d);
    const int left = head_dim - d / kGroupDims * kGroupDims;
    const int dims = left < kGroupDims ? left : kGroupDims;
    const auto* const quants = reinterpret_cast<const std::int8_t*>(group + kKvScalesBytes);
    return scale(group, slot) * static_cast<float>(quants[slot * dims + d % kGroupDims]);
  }
};

// The keys that a row sees.
struct Visible {
  std::int64_t first, end;
};
__device__ inline Visible visible_keys(std::int64_t position, std::int64_t window) {
  const std::int64_t end = position + 1;
  return {.first = window > 0 && end > window ? end - window : 0, .end = end};
}

}  // namespace stagecoach::cuda
