// Keys and values in device code, by their type (kernels/include/kv_page.h). A head's page is read
// in groups of 32 dimensions, which is how q8 has its scales.
#pragma once

#include "kernels/cuda/elements.h"
#include "kernels/include/kv_page.h"

namespace stagecoach::cuda {

inline constexpr int kPageKeys = static_cast<int>(kKvPageTokens);
inline constexpr int kGroupDims = static_cast<int>(kKvGroupDims);

// What a thread reads at once where a page's rows allow it: neighbouring keys of one dimension, or
// neighbouring dimensions of one value, where head_dim is a multiple of as many. Both begin at
// multiples of kRun; what is not `there` is zero.
inline constexpr int kRun = 8;

// No kernel that reads pages writes them. Without __ldg the compiler, which finds their addresses
// in memory, would not even know that it is global memory.
template <typename T>
__device__ T read_page(const std::byte* at) {
  return __ldg(reinterpret_cast<const T*>(at));
}

// float or __half.
template <typename T>
struct KvReader {
  static constexpr int kBytes = static_cast<int>(sizeof(T));

  // Of a run of keys, in the group of dimension d.
  struct KeyScales {
    __device__ KeyScales(const std::byte*, int, int) {}
  };

  static __device__ float key(const std::byte* head, int d, int key) {
    return to_float(read_page<T>(head + (d * kPageKeys + key) * kBytes));
  }
  static __device__ void keys(const std::byte* head, int d, int key, const KeyScales&, bool there,
                              float (&to)[kRun]) {
    read_run(head + (d * kPageKeys + key) * kBytes, there, to);
  }
  static __device__ float value(const std::byte* head, int head_dim, int slot, int d) {
    return to_float(read_page<T>(head + (slot * head_dim + d) * kBytes));
  }
  static __device__ void values(const std::byte* head, int head_dim, int slot, int d, bool there,
                                float (&to)[kRun]) {
    read_run(head + (slot * head_dim + d) * kBytes, there, to);
  }

 private:
  static __device__ void read_run(const std::byte* at, bool there, float (&to)[kRun]) {
    constexpr int kWord = static_cast<int>(sizeof(uint4));
    uint4 words[kRun * kBytes / kWord] = {};
#pragma unroll
    for (int i = 0; i < kRun * kBytes / kWord; ++i)
      if (there) words[i] = read_page<uint4>(at + i * kWord);
#pragma unroll
    for (int i = 0; i < kRun; ++i) to[i] = to_float(reinterpret_cast<const T*>(words)[i]);
  }
};

struct Q8Kv {};

template <>
struct KvReader<Q8Kv> {
  struct KeyScales {
    uint4 bfloat16s;

    __device__ KeyScales(const std::byte* head, int d, int key)
        : bfloat16s(read_page<uint4>(group_of(head, d) + 2 * key)) {}
    __device__ float operator[](int i) const {
      return to_float(reinterpret_cast<const __nv_bfloat16*>(&bfloat16s)[i]);
    }
  };

  static __device__ const std::byte* group_of(const std::byte* head, int d) {
    return head + d / kGroupDims * kKvGroupBytes;
  }
  static __device__ float scale(const std::byte* group, int slot) {
    return to_float(read_page<__nv_bfloat16>(group + 2 * slot));
  }
  // Of a value's dimension d.
  static __device__ const std::byte* quant(const std::byte* group, int head_dim, int slot, int d) {
    const int left = head_dim - d / kGroupDims * kGroupDims;
    const int dims = left < kGroupDims ? left : kGroupDims;
    return group + kKvScalesBytes + slot * dims + d % kGroupDims;
  }
  static __device__ void keys(const std::byte* head, int d, int key, const KeyScales& scales,
                              bool there, float (&to)[kRun]) {
    read_run(group_of(head, d) + kKvScalesBytes + d % kGroupDims * kPageKeys + key, there, to);
#pragma unroll
    for (int i = 0; i < kRun; ++i) to[i] *= scales[i];
  }
  static __device__ float value(const std::byte* head, int head_dim, int slot, int d) {
    const std::byte* const group = group_of(head, d);
    return scale(group, slot) *
           static_cast<float>(read_page<signed char>(quant(group, head_dim, slot, d)));
  }
  static __device__ void values(const std::byte* head, int head_dim, int slot, int d, bool there,
                                float (&to)[kRun]) {
    const std::byte* const group = group_of(head, d);
    const float of_slot = there ? scale(group, slot) : 0.0f;
    read_run(quant(group, head_dim, slot, d), there, to);
#pragma unroll
    for (float& x : to) x *= of_slot;
  }

 private:
  static __device__ void read_run(const std::byte* at, bool there, float (&to)[kRun]) {
    uint2 words{};
    if (there) words = read_page<uint2>(at);
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      to[i] = static_cast<float>(signed_byte(i < 4 ? words.x : words.y, i % 4));
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
