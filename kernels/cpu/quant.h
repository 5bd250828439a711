// Quantised weights (pack.h, group layouts) as float32 vectors. A weight becomes quant · scale,
// which is exact, before it meets x: sums are those of an f32 matrix that holds the same values,
// one accumulator in ascending k.
#pragma once

#include "kernels/cpu/tile.h"
#include "kernels/include/pack.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// Weight types in groups: how many columns stand in a word, and how column j of each lane's word
// becomes a float. j is a constant wherever loops are unrolled.
struct AsQ8 {
  static constexpr DType kType = DType::kQ8;
  static constexpr int kWordCols = 4;
  static Vec quants(IntVec words, int j) {
    return __builtin_convertvector(words << (24 - 8 * j) >> 24, Vec);
  }
};
struct AsQ4 {
  static constexpr DType kType = DType::kQ4;
  static constexpr int kWordCols = 8;
  static Vec quants(IntVec words, int j) {
    return nibbles_less_8(words >> (j < 4 ? 8 * j : 8 * (j - 4) + 4));
  }
};

template <typename Type>
concept Grouped = requires {
  Type::kWordCols;
};

constexpr int kScaleBytes = 2 * kPanel;
constexpr int kWordBytes = 4 * kPanel;  // of one word of each row

template <Grouped Type>
constexpr std::int64_t kGroupBytes = layout_bytes(matrix_layout(Type::kType), Type::kType,
                                                  kPanelRows, kGroupCols);

// That cover `cols` columns.
constexpr std::int64_t num_groups(std::int64_t cols) {
  return (cols + kGroupCols - 1) / kGroupCols;
}

inline IntVec load_words(const std::byte* p) {
  IntVec words;
  __builtin_memcpy(&words, p, sizeof words);
  return words;
}

inline IntVec broadcast_word(const std::byte* p) {
  std::int32_t word;
  __builtin_memcpy(&word, p, sizeof word);
  return word - IntVec{};
}

inline void store_words(std::byte* p, IntVec words) {
  __builtin_memcpy(p, &words, sizeof words);
}

// One group of P panels, b_panel bytes apart.
template <Grouped Type, int P>
struct Group {
  Vec scale[P * kPanelVecs];
  IntVec words[P * kPanelVecs];

  void load_scales(const std::byte* b, std::int64_t b_panel) {
#pragma GCC unroll 16
    for (int v = 0; v < P * kPanelVecs; ++v)
      scale[v] = load_f16(reinterpret_cast<const std::uint16_t*>(b + v / kPanelVecs * b_panel) +
                          v % kPanelVecs * kLanes);
  }
  // Word `i` of each row.
  void load_words(const std::byte* b, std::int64_t b_panel, int i) {
    b += kScaleBytes + i * kWordBytes;
#pragma GCC unroll 16
    for (int v = 0; v < P * kPanelVecs; ++v)
      words[v] =
          STAGECOACH_ISA::load_words(b + v / kPanelVecs * b_panel + v % kPanelVecs * kLanes * 4);
  }
  Vec weight(int v, int j) const {
    return Type::quants(words[v], j) * scale[v];
  }
};

// c (R, P · 16) = a (R, k) · b, whose weights are read once and converted in registers.
template <Grouped Type>
struct GroupTile {
  const float* a;
  std::int64_t a_stride;  // between rows
  const std::byte* b;     // panels of groups
  std::int64_t b_panel;   // bytes between panels
  std::int64_t k;
  float* c;
  std::int64_t c_stride;  // between rows; panels are 16 apart
};

template <int R, int V>
inline void multiply_column(const float* a, std::int64_t a_stride, const Vec (&weight)[V],
                            Vec (&sum)[R][V]) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec x = broadcast(a[r * a_stride]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = multiply_add(x, weight[v], sum[r][v]);
  }
}

template <typename Type, int R, int P>
STAGECOACH_TILE run_group_tile(const GroupTile<Type>& t) {
  constexpr int V = P * kPanelVecs;
  Vec sum[R][V] = {};
  Group<Type, P> group;
  const float* a = t.a;
  const std::byte* b = t.b;
  for (std::int64_t k = 0; k < t.k; k += kGroupCols, b += kGroupBytes<Type>) {
    group.load_scales(b, t.b_panel);
    const std::int64_t count = t.k - k < kGroupCols ? t.k - k : kGroupCols;
    const int whole = static_cast<int>(count / Type::kWordCols);
    for (int i = 0; i < whole; ++i) {
      group.load_words(b, t.b_panel, i);
#pragma GCC unroll 8
      for (int j = 0; j < Type::kWordCols; ++j, ++a) {
        Vec weight[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) weight[v] = group.weight(v, j);
        multiply_column<R, V>(a, t.a_stride, weight, sum);
      }
    }
    // The rest of a matrix whose width no word divides: x ends here.
    const int rest = static_cast<int>(count % Type::kWordCols);
    if (rest > 0) group.load_words(b, t.b_panel, whole);
#pragma GCC unroll 1
    for (int j = 0; j < rest; ++j, ++a) {
      Vec weight[V];
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) weight[v] = group.weight(v, j);
      multiply_column<R, V>(a, t.a_stride, weight, sum);
    }
  }
  store_sums(sum, {t.c, t.c_stride, false});
}

// Whole groups of one panel that cover `count` columns → (columns, 16) float32.
template <Grouped Type>
inline void expand_groups(const std::byte* b, std::int64_t count, float* destination) {
  Group<Type, 1> group;
  for (std::int64_t k = 0; k < count; k += kGroupCols, b += kGroupBytes<Type>) {
    group.load_scales(b, 0);
    for (int i = 0; i < kGroupCols / Type::kWordCols; ++i) {
      group.load_words(b, 0, i);
#pragma GCC unroll 8
      for (int j = 0; j < Type::kWordCols; ++j, destination += kPanel)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVecs; ++v) store(destination + v * kLanes, group.weight(v, j));
    }
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
