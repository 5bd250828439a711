// The vector type's operations that need no intrinsics. GCC and Clang give vector types +, -, *, /,
// comparisons and ?: per lane; these are the loads, stores and reductions.
//
// Everything in kernels/cpu has internal linkage: the same template compiled for two instruction
// sets must never meet in the linker, which would keep one of them for both.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

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

// Lane i gets lane (i + By) % kLanes.
template <int By, std::size_t... Lane>
inline Vec rotated(Vec v, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(v, v, static_cast<int>((Lane + By) % kLanes)...);
}

// A fixed tree: lane i meets lane i + n/2, then i + n/4 …
template <int Half = kLanes / 2>
inline float sum_lanes(Vec v) {
  v += rotated<Half>(v, std::make_index_sequence<kLanes>());
  if constexpr (Half > 1) return sum_lanes<Half / 2>(v);
  return v[0];
}

template <int Half = kLanes / 2>
inline float max_lanes(Vec v) {
  v = max(rotated<Half>(v, std::make_index_sequence<kLanes>()), v);
  if constexpr (Half > 1) return max_lanes<Half / 2>(v);
  return v[0];
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
