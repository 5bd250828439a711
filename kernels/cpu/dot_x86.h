// Integer dot products of x86-64: each lane adds the four products of its bytes. NibbleDot takes
// weights 0 to 15, as q4 stores them, 8 above their value; ByteDot takes q8's signed ones.
//
//   start(minus_8_sum)          what a group's sum starts from
//   add(sum, weights, x)        four columns
//   total(sum, minus_8_sum)     Σ weight value · x
//
// With VNNI one instruction multiplies unsigned by signed bytes into 32 bits. Without, sums of two
// products go through 16 bits: 15 · 127 · 2 is small enough for all eight quads of a group; 127 ·
// 127 · 2 for one, with which ByteDot multiplies few rows (many: product_planes.h). kRows × kPanels
// is the tile.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace stagecoach::STAGECOACH_ISA {
namespace {

#if defined(__AVX512F__)
using Bits = __m512i;
#else
using Bits = __m256i;
#endif

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

inline IntVec dot_unsigned(IntVec sum, IntVec weights, IntVec x) {
#if defined(__AVX512VNNI__)
  return (IntVec)_mm512_dpbusd_epi32((Bits)sum, (Bits)weights, (Bits)x);
#else
  return (IntVec)_mm256_dpbusd_avx_epi32((Bits)sum, (Bits)weights, (Bits)x);
#endif
}

struct NibbleDot {
  static constexpr int kRows = 6, kPanels = kTilePanels;
  using Sum = IntVec;
  static Sum start(IntVec minus_8_sum) { return minus_8_sum; }
  static Sum add(Sum sum, IntVec weights, IntVec x) { return dot_unsigned(sum, weights, x); }
  static IntVec total(Sum sum, IntVec) { return sum; }
};

// The weights 128 higher: as unsigned bytes.
struct ByteDot {
  static constexpr int kRows = 6, kPanels = kTilePanels;
  using Sum = IntVec;
  static Sum start(IntVec minus_8_sum) { return minus_8_sum << 4; }
  static Sum add(Sum sum, IntVec weights, IntVec x) {
    return dot_unsigned(sum, weights ^ static_cast<std::int32_t>(0x80808080u), x);
  }
  static IntVec total(Sum sum, IntVec) { return sum; }
};

#else

#if defined(__AVX512F__)
using Sum16 = std::int16_t __attribute__((vector_size(64)));

inline Sum16 products_of_pairs(IntVec weights, IntVec x) {
  return (Sum16)_mm512_maddubs_epi16((Bits)weights, (Bits)x);
}
inline IntVec sums_of_pairs(Sum16 pairs, std::int16_t factor) {
  return (IntVec)_mm512_madd_epi16((Bits)pairs, _mm512_set1_epi16(factor));
}
inline IntVec magnitudes(IntVec bytes) {
  return (IntVec)_mm512_maskz_abs_epi8(~__mmask64{0}, (Bits)bytes);
}
// x, negated where `signs` is negative.
inline IntVec with_signs(IntVec x, IntVec signs) {
  return (IntVec)_mm512_mask_sub_epi8((Bits)x, _mm512_movepi8_mask((Bits)signs), Bits{}, (Bits)x);
}
#else
using Sum16 = std::int16_t __attribute__((vector_size(32)));

inline Sum16 products_of_pairs(IntVec weights, IntVec x) {
  return (Sum16)_mm256_maddubs_epi16((Bits)weights, (Bits)x);
}
inline IntVec sums_of_pairs(Sum16 pairs, std::int16_t factor) {
  return (IntVec)_mm256_madd_epi16((Bits)pairs, _mm256_set1_epi16(factor));
}
inline IntVec magnitudes(IntVec bytes) {
  return (IntVec)_mm256_abs_epi8((Bits)bytes);
}
inline IntVec with_signs(IntVec x, IntVec signs) {
  return (IntVec)_mm256_sign_epi8((Bits)x, (Bits)signs);
}
#endif

struct NibbleDot {
  static constexpr int kRows = kLanes == 8 ? 4 : 6, kPanels = kTilePanels;
  using Sum = Sum16;
  static Sum start(IntVec) { return Sum{}; }
  static Sum add(Sum sum, IntVec weights, IntVec x) { return sum + products_of_pairs(weights, x); }
  static IntVec total(Sum sum, IntVec minus_8_sum) { return sums_of_pairs(sum, 1) + minus_8_sum; }
};

struct ByteDot {
  static constexpr int kRows = kLanes == 8 ? 4 : 6, kPanels = kTilePanels;
  using Sum = IntVec;
  static Sum start(IntVec) { return Sum{}; }
  static Sum add(Sum sum, IntVec weights, IntVec x) {
    return sum + sums_of_pairs(products_of_pairs(magnitudes(weights), with_signs(x, weights)), 1);
  }
  static IntVec total(Sum sum, IntVec) { return sum; }
};

#endif

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
