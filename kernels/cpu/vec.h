// The vector type's operations that need no intrinsics. GCC and Clang give vector types +, -, *, /,
// comparisons and ?: per lane; these are the loads, stores and reductions.
//
// Everything in kernels/cpu has internal linkage: the same template compiled for two instruction
// sets must never meet in the linker, which would keep one of them for both.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stagecoach::STAGECOACH_ISA {
namespace {

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof v);
}

inline Vec broadcast(float value) {
  return value - Vec{};
}

// The first `n` lanes (n < kLanes) of p; the others are zero. For the ends of rows only.
inline Vec load_partial(const float* p, std::int64_t n) {
  Vec v = {};
  __builtin_memcpy(&v, p, static_cast<std::size_t>(n) * sizeof(float));
  return v;
}

inline void store_partial(float* p, Vec v, std::int64_t n) {
  __builtin_memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(float));
}

inline Vec load_first(const float* p, std::int64_t n) {
  return n >= kLanes ? load(p) : load_partial(p, n);
}

inline void store_first(float* p, Vec v, std::int64_t n) {
  if (n >= kLanes) return store(p, v);
  store_partial(p, v, n);
}

// NaN in `a` is lost, NaN in `b` stays.
inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}

// A fixed tree: lane i meets lane i + n/2, then i + n/4 …
inline float sum_lanes(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float max_lanes(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
