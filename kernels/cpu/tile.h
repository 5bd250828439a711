// The inner kernel that matrix products and attention share:
//
//   c (R, P · 16) [+]= a (R, k) · b (k, P · 16)
//
// Each element of c is one accumulator in ascending k. It may be stored and loaded between calls
// for successive ranges of k, which changes no bit, and R is only how many rows share a load of b:
// so neither blocking nor batch changes a result.
#pragma once

#include <cstddef>

#include "kernels/cpu/vec.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr int kPanel = 16;
constexpr int kPanelVecs = kPanel / kLanes;

// Weight types: what an element is and how kLanes of them become float32.
struct AsF32 {
  using Element = float;
  static Vec load_vec(const float* p) { return load(p); }
};
struct AsF16 {
  using Element = std::uint16_t;
  static Vec load_vec(const std::uint16_t* p) { return load_f16(p); }
};
struct AsBF16 {
  using Element = std::uint16_t;
  static Vec load_vec(const std::uint16_t* p) { return load_bf16(p); }
};

template <typename Type>
struct Tile {
  const float* a;
  std::int64_t a_stride;  // between rows
  const typename Type::Element* b;
  std::int64_t b_step;   // between successive k
  std::int64_t b_panel;  // between panels
  std::int64_t k;
  float* c;
  std::int64_t c_stride;  // between rows; panels are 16 apart
  bool load_c;            // continue a sum; else start from zero
};

// From so many rows on, a step's work hides the next ones' loads from the processor's own
// look-ahead: tiles that read weights from memory then ask for them, into L2, this far ahead.
constexpr int kBusyRows = 4;
constexpr std::int64_t kBytesAhead = 2048;

// `bytes` at p + ahead, which may lie beyond the end of what there is: asking for it does no harm.
inline void prefetch(const void* p, std::int64_t ahead, std::int64_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(p) + static_cast<std::uintptr_t>(ahead);
  for (std::uintptr_t i = 0; i < static_cast<std::uintptr_t>(bytes); i += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(begin + i), 0, 2);
}

// A tile is a function of its own: inlined, it would share its registers with what is around it,
// and a sum that waits in memory makes its whole loop wait.
#define STAGECOACH_TILE __attribute__((noinline)) void

// AStride, where it is known: one pointer then serves all rows, which otherwise take a register
// each and more than there are.
template <typename Type, int R, int P, std::int64_t AStride = 0, bool FromMemory = false>
STAGECOACH_TILE run_tile(const Tile<Type>& t) {
  const std::int64_t a_stride = AStride != 0 ? AStride : t.a_stride;
  Vec sum[R][P * kPanelVecs];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < P * kPanelVecs; ++v)
      sum[r][v] = t.load_c ? load(t.c + r * t.c_stride + v * kLanes) : Vec{};

  const float* a = t.a;
  const typename Type::Element* b = t.b;
  for (std::int64_t i = 0; i < t.k; ++i, ++a, b += t.b_step) {
    if constexpr (FromMemory && R >= kBusyRows)
      for (int p = 0; p < P; ++p) prefetch(b + p * t.b_panel, kBytesAhead, kPanel * sizeof(*b));
    Vec weight[P * kPanelVecs];
#pragma GCC unroll 16
    for (int v = 0; v < P * kPanelVecs; ++v)
      weight[v] = Type::load_vec(b + v / kPanelVecs * t.b_panel + v % kPanelVecs * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = broadcast(a[r * a_stride]);
#pragma GCC unroll 16
      for (int v = 0; v < P * kPanelVecs; ++v) sum[r][v] = multiply_add(x, weight[v], sum[r][v]);
    }
  }

#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < P * kPanelVecs; ++v) store(t.c + r * t.c_stride + v * kLanes, sum[r][v]);
}

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

// `rows` rows in tiles of nearly equal height, `most` at most: a tile of one or two rows at the end
// would wait for the latency of its few chains. visit(first, count) runs a tile.
template <typename Visit>
inline void for_each_tile(std::int64_t rows, std::int64_t most, Visit visit) {
  std::int64_t row = 0;
  for (std::int64_t tiles = (rows + most - 1) / most; tiles > 0; --tiles) {
    const std::int64_t count = (rows - row + tiles - 1) / tiles;
    visit(row, count);
    row += count;
  }
}

// Any number of rows up to Max, each with its own instantiation.
template <typename Type, int P, int Max>
inline void run_tile_rows(const Tile<Type>& t, std::int64_t rows) {
  if (rows == Max) return run_tile<Type, Max, P>(t);
  if constexpr (Max > 1) run_tile_rows<Type, P, Max - 1>(t, rows);
}

// The sums of a chunk of rows against some panels, between one block of k and the next.
struct PartialSums {
  float* data;
  std::int64_t stride;  // between rows; panels are 16 apart
  bool continued;       // else they start from zero

  PartialSums at_row(std::int64_t row) const { return {data + row * stride, stride, continued}; }
};

// Those of a tile, in registers.
template <int R, int V>
inline void load_sums(const PartialSums& from, Vec (&sum)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v)
      sum[r][v] = from.continued ? load(from.data + r * from.stride + v * kLanes) : Vec{};
}

template <int R, int V>
inline void store_sums(const Vec (&sum)[R][V], const PartialSums& to) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store(to.data + r * to.stride + v * kLanes, sum[r][v]);
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
