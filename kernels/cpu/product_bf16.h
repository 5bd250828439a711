// Products by bf16 dot instructions, two columns at a time. Weights are brought into pairs, in
// registers for a few rows, else a block at a time: bf16 as they are, quantised ones as their
// quants, which bf16 holds exactly, with the scale applied to the sum of a group.
#pragma once

#include "kernels/cpu/multiply.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr std::int64_t kPairBytes = 4 * kPanel;  // two columns of a panel

// Low halves from the upper half of `a`, high halves from that of `b`.
inline IntVec pair_halves(IntVec a, IntVec b) {
  return (a >> 16 & 0xffff) | (b & static_cast<std::int32_t>(0xffff0000u));
}

// One vector of a column of bf16 and, but where an odd width ends, of the next.
inline IntVec load_pair(const std::uint16_t* column, bool whole) {
  return pair_halves((IntVec)load_bf16(column),
                     whole ? (IntVec)load_bf16(column + kPanel) : IntVec{});
}

// Columns j and j + 1 of each lane's word as a pair. j is even.
template <Grouped Type>
inline IntVec quant_pair(IntVec words, int j) {
  if constexpr (Type::kType == DType::kQ4)
    return nibble_pairs_less_8(j < 4 ? words : words >> 4, j % 4);
  // Small integers: the lower halves of their float32 are zero.
  using Unsigned = std::uint32_t __attribute__((vector_size(4 * kLanes)));
  return (IntVec)((Unsigned)Type::quants(words, j) >> 16) | (IntVec)Type::quants(words, j + 1);
}

// Quants of one group of a panel as pairs.
template <Grouped Type>
inline void store_group_pairs(const std::byte* b, std::byte* pairs) {
  Group<Type, 1> group;
  for (int i = 0; i < kGroupCols / Type::kWordCols; ++i) {
    group.load_words(b, 0, i);
#pragma GCC unroll 4
    for (int j = 0; j < Type::kWordCols; j += 2, pairs += kPairBytes)
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVecs; ++v)
        store_words(pairs + v * kLanes * 4, quant_pair<Type>(group.words[v], j));
  }
}

// One pair of columns: R rows of x, each its own, with V vectors of weights.
template <int R, int V>
inline void dot_pair(const std::byte* x, std::int64_t x_stride, const IntVec (&weight)[V],
                     Vec (&sum)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const IntVec pair = broadcast_word(x + r * x_stride);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = dot_bf16(sum[r][v], pair, weight[v]);
  }
}

// c (R, P · 16) [+]= x (R, pairs) · b (pairs, P · 16), all in pairs of columns.
struct Bf16Tile {
  const std::byte* x;
  std::int64_t x_stride;
  const std::byte* b;
  std::int64_t b_panel;  // bytes between panels
  std::int64_t pairs;
  const float* scales;  // (groups, P · 16) of quantised weights
  PartialSums c;
};

template <int R, int P>
inline void add_pairs(const Bf16Tile& t, std::int64_t begin, std::int64_t end,
                      Vec (&sum)[R][P * kPanelVecs]) {
  constexpr int V = P * kPanelVecs;
  const std::byte* x = t.x + begin * 4;
  const std::byte* b = t.b + begin * kPairBytes;
  for (std::int64_t i = begin; i < end; ++i, x += 4, b += kPairBytes) {
    IntVec weight[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v)
      weight[v] = load_words(b + v / kPanelVecs * t.b_panel + v % kPanelVecs * kLanes * 4);
    dot_pair<R, V>(x, t.x_stride, weight, sum);
  }
}

template <typename Type, int R, int P>
STAGECOACH_TILE run_bf16_tile(const Bf16Tile& t) {
  constexpr int V = P * kPanelVecs;
  Vec sum[R][V];
  load_sums(t.c, sum);
  if constexpr (Grouped<Type>) {
    constexpr std::int64_t kGroupPairs = kGroupCols / 2;
    const float* scale = t.scales;
    for (std::int64_t i = 0; i < t.pairs; i += kGroupPairs, scale += P * kPanel) {
      Vec dot[R][V] = {};
      add_pairs<R, P>(t, i, smaller(i + kGroupPairs, t.pairs), dot);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v)
          sum[r][v] = multiply_add(dot[r][v], load(scale + v * kLanes), sum[r][v]);
    }
  } else {
    add_pairs<R, P>(t, 0, t.pairs, sum);
  }
  store_sums(sum, t.c);
}

// c (R, P · 16) = x (R, k) · b, whose groups are read once and paired in registers.
template <Grouped Type>
struct Bf16GroupTile {
  const std::byte* x;
  std::int64_t x_stride;
  const std::byte* b;    // panels of groups
  std::int64_t b_panel;  // bytes between panels
  std::int64_t k;
  float* c;  // rows are P · 16 apart
};

template <typename Type, int R, int P>
STAGECOACH_TILE run_bf16_group_tile(const Bf16GroupTile<Type>& t) {
  constexpr int V = P * kPanelVecs;
  constexpr int kWordPairs = Type::kWordCols / 2;
  Vec sum[R][V] = {};
  Group<Type, P> group;
  const std::byte* x = t.x;
  const std::byte* b = t.b;
  for (std::int64_t k = 0; k < t.k; k += kGroupCols, b += kGroupBytes<Type>) {
    if constexpr (R >= kBusyRows)
      for (int p = 0; p < P; ++p) prefetch(b + p * t.b_panel, kBytesAhead, kGroupBytes<Type>);
    Vec dot[R][V] = {};
    const auto add_pair = [&](int j) {
      IntVec weight[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) weight[v] = quant_pair<Type>(group.words[v], 2 * j);
      dot_pair<R, V>(x, t.x_stride, weight, dot);
      x += 4;
    };
    const std::int64_t pairs = (smaller(t.k - k, kGroupCols) + 1) / 2;
    const int whole = static_cast<int>(pairs / kWordPairs);
    for (int i = 0; i < whole; ++i) {
      group.load_words(b, t.b_panel, i);
#pragma GCC unroll 4
      for (int j = 0; j < kWordPairs; ++j) add_pair(j);
    }
    // The rest of a matrix whose width no word divides: x ends here.
    const int rest = static_cast<int>(pairs % kWordPairs);
    if (rest > 0) group.load_words(b, t.b_panel, whole);
#pragma GCC unroll 1
    for (int j = 0; j < rest; ++j) add_pair(j);
    group.load_scales(b, t.b_panel);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(dot[r][v], group.scale[v], sum[r][v]);
  }
  store_sums(sum, {t.c, P * kPanel, false});
}

template <typename Type>
class Bf16Product {
 public:
  using Weights = Type;
  // A group's sums need registers of their own beside the running ones.
  static constexpr int kRows = Grouped<Type> ? kTileRows / 2 : kTileRows, kPanels = kTilePanels;
  static constexpr int kSums = kRows * kPanels;
  static constexpr int kStreamRows = Grouped<Type> ? kSums : kRows;
  static constexpr std::int64_t kFewRows = 48;
  static constexpr std::int64_t kBlockK = 256;  // 16 KiB of pairs
  static constexpr std::int64_t kChunkRows = 192;
  static_assert(kBlockK % kGroupCols == 0);

  template <int R, int P>
  static void stream(const MatmulArgs& args, std::int64_t panel, float* sums) {
    if constexpr (Grouped<Type>) {
      const std::byte* const groups = panel_groups<Type>(args, panel);
      run_bf16_group_tile<Type, R, P>({args.x.data, args.x.stride, groups,
                                       panel_groups<Type>(args, panel + 1) - groups, args.in,
                                       sums});
    } else {
      stream_pairs<R, P>(args, panel, sums);
    }
  }

  Bf16Product(const MatmulArgs& args, std::int64_t row, std::int64_t)
      : args_(args), x_(args.x.data + row * args.x.stride) {}

  void enter_block(std::int64_t k, std::int64_t count) {
    k_ = k;
    count_ = count;
  }

  template <int P>
  void enter_panels(std::int64_t panel) {
    for (int p = 0; p < P; ++p) {
      std::byte* pairs = pairs_ + p * kPanelStride;
      if constexpr (Grouped<Type>) {
        const std::byte* b =
            panel_groups<Type>(args_, panel + p) + k_ / kGroupCols * kGroupBytes<Type>;
        for (std::int64_t k = 0; k < count_;
             k += kGroupCols, b += kGroupBytes<Type>, pairs += kGroupCols / 2 * kPairBytes) {
          Group<Type, 1> group;
          group.load_scales(b, 0);
          for (int v = 0; v < kPanelVecs; ++v)
            store(scales_ + (k / kGroupCols * P + p) * kPanel + v * kLanes, group.scale[v]);
          store_group_pairs<Type>(b, pairs);
        }
      } else {
        const std::uint16_t* b = panel_weights<Type>(args_, panel + p) + k_ * kPanel;
        for (std::int64_t k = 0; k < count_; k += 2, b += 2 * kPanel, pairs += kPairBytes)
          for (int v = 0; v < kPanelVecs; ++v)
            store_words(pairs + v * kLanes * 4, load_pair(b + v * kLanes, k + 1 < count_));
      }
    }
  }

  template <int R, int P>
  void run(std::int64_t row, const PartialSums& sums) const {
    run_bf16_tile<Type, R, P>({x_ + row * args_.x.stride + k_ * 2, args_.x.stride, pairs_,
                               kPanelStride, (count_ + 1) / 2, scales_, sums});
  }

 private:
  // Weights paired in registers.
  template <int R, int P>
  static void stream_pairs(const MatmulArgs& args, std::int64_t panel, float* sums) {
    constexpr int V = P * kPanelVecs;
    Vec sum[R][V] = {};
    const std::uint16_t* b = panel_weights<Type>(args, panel);
    const std::byte* x = args.x.data;
    for (std::int64_t k = 0; k < args.in; k += 2, b += 2 * kPanel, x += 4) {
      const bool whole = k + 1 < args.in;
      if constexpr (R >= kBusyRows)
        for (int p = 0; p < P; ++p) prefetch(b + p * kPanel * args.in, kBytesAhead, kPairBytes);
      IntVec weight[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        weight[v] =
            load_pair(b + v / kPanelVecs * kPanel * args.in + v % kPanelVecs * kLanes, whole);
      }
      dot_pair<R, V>(x, args.x.stride, weight, sum);
    }
    store_sums(sum, {sums, P * kPanel, false});
  }

  static constexpr std::int64_t kPanelStride = kBlockK / 2 * kPairBytes;

  const MatmulArgs& args_;
  const std::byte* const x_;
  std::int64_t k_ = 0, count_ = 0;
  alignas(64) std::byte pairs_[kPanels * kPanelStride];
  alignas(64) float scales_[Grouped<Type> ? kPanels * kBlockK / kGroupCols * kPanel : 1];
};

inline void multiply_bf16(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.weight_type == DType::kBF16) return multiply<Bf16Product<AsBF16>>(args, begin, end);
  if (args.weight_type == DType::kQ8) return multiply<Bf16Product<AsQ8>>(args, begin, end);
  if (args.weight_type == DType::kQ4) return multiply<Bf16Product<AsQ4>>(args, begin, end);
  __builtin_trap();
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
