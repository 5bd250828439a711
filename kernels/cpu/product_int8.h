// Products of quantised x and quantised weights: the products of a group add up exactly in
// integers, which then meet both scales. Weights are read where they lie, for few rows and for
// many: what they need before a dot product is less than a load and a store.
#pragma once

#include "kernels/cpu/multiply.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

inline float load_float(const std::byte* p) {
  float value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

constexpr std::int64_t kGroupsAhead = 8;

// How the words of a weight type become operands of a dot product: `kQuads` of four columns each.
template <typename Type>
struct Quads;
template <>
struct Quads<AsQ8> {
  using Dot = ByteDot;
  static constexpr int kQuads = 1;
  static IntVec quad(IntVec words, int) { return words; }
};
template <>
struct Quads<AsQ4> {
  using Dot = NibbleDot;
  static constexpr int kQuads = 2;
  static IntVec quad(IntVec words, int i) { return (i == 0 ? words : words >> 4) & 0x0f0f0f0f; }
};

// c (R, P · 16) [+]= x (R, groups) · b (groups, P · 16)
struct Int8Tile {
  const std::byte* x;  // InputGroups
  std::int64_t x_stride;
  const std::byte* b;
  std::int64_t b_panel;  // bytes between panels
  std::int64_t groups;
  PartialSums c;
};

// FromMemory: weights are asked for some groups ahead.
template <typename Type, int R, int P, bool FromMemory>
STAGECOACH_TILE run_int8_tile(const Int8Tile& t) {
  using Dot = typename Quads<Type>::Dot;
  constexpr int V = P * kPanelVecs;
  constexpr int kWords = kGroupCols / Type::kWordCols;
  constexpr int kQuads = Quads<Type>::kQuads;
  Vec sum[R][V];
  load_sums(t.c, sum);

  const std::byte* x = t.x;
  const std::byte* b = t.b;
  for (std::int64_t g = 0; g < t.groups; ++g, x += sizeof(InputGroup), b += kGroupBytes<Type>) {
    if constexpr (FromMemory && R >= kBusyRows)
      for (int p = 0; p < P; ++p)
        prefetch(b + p * t.b_panel, kGroupsAhead * kGroupBytes<Type>, kGroupBytes<Type>);
    typename Dot::Sum dot[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const IntVec minus_8_sum =
          broadcast_word(x + r * t.x_stride + offsetof(InputGroup, minus_8_sum));
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) dot[r][v] = Dot::start(minus_8_sum);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kWords * kQuads; ++i) {
      IntVec weight[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v)
        weight[v] =
            Quads<Type>::quad(load_words(b + kScaleBytes + v / kPanelVecs * t.b_panel +
                                         i / kQuads * kWordBytes + v % kPanelVecs * kLanes * 4),
                              i % kQuads);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const IntVec quad =
            broadcast_word(x + r * t.x_stride + offsetof(InputGroup, quant) + i * 4);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) dot[r][v] = Dot::add(dot[r][v], weight[v], quad);
      }
    }
    Vec scale[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v)
      scale[v] = load_f16(reinterpret_cast<const std::uint16_t*>(b + v / kPanelVecs * t.b_panel) +
                          v % kPanelVecs * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const std::byte* const row = x + r * t.x_stride;
      const Vec x_scale = broadcast(load_float(row + offsetof(InputGroup, scale)));
      const IntVec minus_8_sum = broadcast_word(row + offsetof(InputGroup, minus_8_sum));
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        const IntVec total = Dot::total(dot[r][v], minus_8_sum);
        sum[r][v] =
            multiply_add(__builtin_convertvector(total, Vec) * scale[v], x_scale, sum[r][v]);
      }
    }
  }

  store_sums(sum, t.c);
}

template <Grouped Type>
class Int8Product {
 public:
  using Weights = Type;
  static constexpr int kRows = Quads<Type>::Dot::kRows, kPanels = Quads<Type>::Dot::kPanels;
  static constexpr int kSums = kRows * kPanels, kStreamRows = kSums;
  static constexpr std::int64_t kFewRows = 48;
  static constexpr std::int64_t kBlockK = 512;
  static constexpr std::int64_t kChunkRows = 192;
  static_assert(kBlockK % kGroupCols == 0);

  template <int R, int P>
  static void stream(const MatmulArgs& args, std::int64_t panel, float* sums) {
    const std::byte* const groups = panel_groups<Type>(args, panel);
    run_int8_tile<Type, R, P, true>({args.x.data,
                                     args.x.stride,
                                     groups,
                                     panel_groups<Type>(args, panel + 1) - groups,
                                     num_groups(args.in),
                                     {sums, P * kPanel, false}});
  }

  Int8Product(const MatmulArgs& args, std::int64_t row, std::int64_t)
      : args_(args),
        x_(args.x.data + row * args.x.stride),
        panel_bytes_(panel_groups<Type>(args, 1) - panel_groups<Type>(args, 0)) {}

  void enter_block(std::int64_t k, std::int64_t count) {
    group_ = k / kGroupCols;
    groups_ = num_groups(count);
  }

  template <int P>
  void enter_panels(std::int64_t panel) {
    weights_ = panel_groups<Type>(args_, panel) + group_ * kGroupBytes<Type>;
  }

  template <int R, int P>
  void run(std::int64_t row, const PartialSums& sums) const {
    run_int8_tile<Type, R, P, false>(
        {x_of(row), args_.x.stride, weights_, panel_bytes_, groups_, sums});
  }

 protected:
  // The block's first group of a row.
  const std::byte* x_of(std::int64_t row) const {
    return x_ + row * args_.x.stride + group_ * static_cast<std::int64_t>(sizeof(InputGroup));
  }

  const MatmulArgs& args_;
  const std::byte* const x_;
  const std::int64_t panel_bytes_;
  const std::byte* weights_ = nullptr;
  std::int64_t group_ = 0, groups_ = 0;
};

// BytesProduct multiplies q8: Int8Product<AsQ8>, or PlanesProduct where that is faster.
template <typename BytesProduct>
inline void multiply_int8(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.weight_type == DType::kQ8) return multiply<BytesProduct>(args, begin, end);
  if (args.weight_type == DType::kQ4) return multiply<Int8Product<AsQ4>>(args, begin, end);
  __builtin_trap();
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
