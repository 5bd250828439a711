// q8 for many rows where integer products go through 16 bits (AVX2, AVX-512 without VNNI). Products
// of whole bytes leave no room there: each pair would have to be widened at once, and x to take the
// weight's sign before. Products of four bits do: a byte, 128 higher, is taken apart once for all
// rows, 16 · high + low, and sums of a whole group fit 16 bits.
#pragma once

#include "kernels/cpu/product_int8.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr int kGroupQuads = kGroupCols / 4;
// Of one group of a panel: for each quad the high halves of its words, then the low ones.
constexpr std::int64_t kPlaneBytes = 2 * kGroupQuads * kWordBytes;

// c (R, P · 16) [+]= x (R, groups) · b (groups, P · 16)
struct PlanesTile {
  const std::byte* x;  // InputGroups
  std::int64_t x_stride;
  const std::byte* planes;
  std::int64_t planes_panel;  // bytes between panels
  const std::byte* b;         // q8 groups, for their scales
  std::int64_t b_panel;
  std::int64_t groups;
  PartialSums c;
};

template <int R, int P>
STAGECOACH_TILE run_planes_tile(const PlanesTile& t) {
  constexpr int V = P * kPanelVecs;
  Vec sum[R][V];
  load_sums(t.c, sum);

  const std::byte* x = t.x;
  const std::byte* b = t.b;
  const std::byte* planes = t.planes;
  for (std::int64_t g = 0; g < t.groups; ++g, x += sizeof(InputGroup), b += kGroupBytes<AsQ8>) {
    Sum16 high[R][V] = {}, low[R][V] = {};
#pragma GCC unroll 8
    for (int i = 0; i < kGroupQuads; ++i, planes += 2 * kWordBytes)
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const IntVec quad =
            broadcast_word(x + r * t.x_stride + offsetof(InputGroup, quant) + i * 4);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
          const std::byte* const word =
              planes + v / kPanelVecs * t.planes_panel + v % kPanelVecs * kLanes * 4;
          high[r][v] += products_of_pairs(load_words(word), quad);
          low[r][v] += products_of_pairs(load_words(word + kWordBytes), quad);
          // Here and now: GCC else keeps all eight products of a sum, and has no registers for
          // them.
          asm("" : "+v"(high[r][v]), "+v"(low[r][v]));
        }
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const std::byte* const row = x + r * t.x_stride;
      const Vec x_scale = broadcast(load_float(row + offsetof(InputGroup, scale)));
      const IntVec minus_128_sum = broadcast_word(row + offsetof(InputGroup, minus_8_sum)) << 4;
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) {
        const Vec scale =
            load_f16(reinterpret_cast<const std::uint16_t*>(b + v / kPanelVecs * t.b_panel) +
                     v % kPanelVecs * kLanes);
        const IntVec total =
            sums_of_pairs(high[r][v], 16) + sums_of_pairs(low[r][v], 1) + minus_128_sum;
        sum[r][v] = multiply_add(__builtin_convertvector(total, Vec) * scale, x_scale, sum[r][v]);
      }
    }
  }

  store_sums(sum, t.c);
}

class PlanesProduct : public Int8Product<AsQ8> {
 public:
  static constexpr int kRows = kLanes == 8 ? 3 : 6;
  static constexpr std::int64_t kFewRows = 24;            // planes are faster from there
  static constexpr std::int64_t kBlockK = 512 / kPanels;  // 16 KiB of planes

  using Int8Product::Int8Product;

  template <int P>
  void enter_panels(std::int64_t panel) {
    Int8Product::enter_panels<P>(panel);
    for (int p = 0; p < P; ++p) {
      const std::byte* b = weights_ + p * panel_bytes_;
      std::byte* planes = planes_ + p * kPanelPlanes;
      for (std::int64_t g = 0; g < groups_; ++g, b += kGroupBytes<AsQ8>)
        for (int i = 0; i < kGroupQuads * kPanelVecs; ++i) {
          const IntVec bytes = load_words(b + kScaleBytes + i * kLanes * 4) ^
                               static_cast<std::int32_t>(0x80808080u);  // 128 higher, unsigned
          std::byte* const word = planes + (g * kGroupQuads + i / kPanelVecs) * 2 * kWordBytes +
                                  i % kPanelVecs * kLanes * 4;
          store_words(word, bytes >> 4 & 0x0f0f0f0f);
          store_words(word + kWordBytes, bytes & 0x0f0f0f0f);
        }
    }
  }

  template <int R, int P>
  void run(std::int64_t row, const PartialSums& sums) const {
    run_planes_tile<R, P>(
        {x_of(row), args_.x.stride, planes_, kPanelPlanes, weights_, panel_bytes_, groups_, sums});
  }

 private:
  static constexpr std::int64_t kPanelPlanes = kBlockK / kGroupCols * kPlaneBytes;

  alignas(64) std::byte planes_[kPanels * kPanelPlanes];
};

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
