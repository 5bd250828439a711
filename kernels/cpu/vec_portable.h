// STAGECOACH_LANES float lanes in the compiler's own vector types, for any processor. Four are the
// scalar table (SSE2 on x86-64, NEON on arm64); eight and sixteen run the tilings of AVX2 and
// AVX-512 where those instructions are missing, so that every tiling is tested on every machine.
#pragma once

#include <cstdint>

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr int kLanes = STAGECOACH_LANES;
using Vec = float __attribute__((vector_size(4 * kLanes)));
using IntVec = std::int32_t __attribute__((vector_size(4 * kLanes)));

constexpr int kTileRows = kLanes == 4 ? 3 : kLanes == 8 ? 6 : 12;
constexpr int kTilePanels = kLanes == 16 ? 2 : 1;

// Two roundings: the baseline has no fused multiply-add, and emulating one would cost tenfold.
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return a * b + c;
}

inline IntVec load_u16(const std::uint16_t* p) {
  using Narrow = std::uint16_t __attribute__((vector_size(2 * kLanes)));
  Narrow narrow;
  __builtin_memcpy(&narrow, p, sizeof narrow);
  return __builtin_convertvector(narrow, IntVec);
}

inline Vec load_f16(const std::uint16_t* p) {
  const IntVec half = load_u16(p);
  const IntVec magnitude = half & 0x7fff;
  // The half's exponent and mantissa as a float32 are 2⁻¹¹² times its value, subnormals included.
  const Vec scaled = (Vec)(magnitude << 13) * 0x1p112f;
  const IntVec special = (magnitude << 13) | 0x7f800000;
  const IntVec bits = magnitude >= 0x7c00 ? special : (IntVec)scaled;
  return (Vec)(bits | ((half & 0x8000) << 16));
}

// As f32_to_f16 (dtype.h), for values that do not overflow.
inline void store_f16(std::uint16_t* p, Vec v) {
  using Narrow = std::uint16_t __attribute__((vector_size(2 * kLanes)));
  const IntVec sign = ((IntVec)v >> 16) & 0x8000;
  const IntVec magnitude = (IntVec)v & 0x7fffffff;
  const IntVec normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  const IntVec subnormal = (IntVec)((Vec)magnitude + 0.5f) - 0x3f000000;
  IntVec half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x7f800000 ? IntVec{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? IntVec{} + 0x7e00 : half;
  const Narrow narrow = __builtin_convertvector(half | sign, Narrow);
  __builtin_memcpy(p, &narrow, sizeof narrow);
}

inline Vec load_bf16(const std::uint16_t* p) {
  return (Vec)(load_u16(p) << 16);
}

inline Vec load_i8(const std::int8_t* p) {
  using Narrow = std::int8_t __attribute__((vector_size(kLanes)));
  Narrow bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, IntVec), Vec);
}

// Lanes within int8's range.
inline void store_i8(std::int8_t* p, IntVec v) {
  using Narrow = std::int8_t __attribute__((vector_size(kLanes)));
  const Narrow bytes = __builtin_convertvector(v, Narrow);
  __builtin_memcpy(p, &bytes, sizeof bytes);
}

// The low four bits of each lane, 0 … 15, less 8.
inline Vec nibbles_less_8(IntVec v) {
  return __builtin_convertvector((v & 15) - 8, Vec);
}

// sum + a · b over pairs of bfloat16, the upper halves first.
inline Vec dot_bf16(Vec sum, IntVec a, IntVec b) {
  constexpr auto kUpper = static_cast<std::int32_t>(0xffff0000u);
  sum = multiply_add((Vec)(a & kUpper), (Vec)(b & kUpper), sum);
  return multiply_add((Vec)(a << 16), (Vec)(b << 16), sum);
}

// The low four bits of bytes j and j + 1 of each lane, less 8, as a pair of bfloat16.
inline IntVec nibble_pairs_less_8(IntVec v, int j) {
  using Unsigned = std::uint32_t __attribute__((vector_size(4 * kLanes)));
  const auto low = (Unsigned)nibbles_less_8(v >> 8 * j);
  return (IntVec)(low >> 16) | (IntVec)nibbles_less_8(v >> 8 * (j + 1));
}

// Integer dot products, see dot_x86.h; sixteen lanes start as VNNI does.
template <bool kSignedWeights>
inline IntVec dot_bytes(IntVec sum, IntVec weights, IntVec x) {
#pragma GCC unroll 4
  for (int shift = 24; shift >= 0; shift -= 8) {
    const IntVec weight = kSignedWeights ? weights << (24 - shift) >> 24 : weights >> shift & 255;
    sum += weight * (x << (24 - shift) >> 24);
  }
  return sum;
}

struct NibbleDot {
  static constexpr int kRows = kTileRows > 6 ? 6 : kTileRows, kPanels = kTilePanels;
  using Sum = IntVec;
  static Sum start(IntVec minus_8_sum) { return kLanes == 16 ? minus_8_sum : Sum{}; }
  static Sum add(Sum sum, IntVec weights, IntVec x) { return dot_bytes<false>(sum, weights, x); }
  static IntVec total(Sum sum, IntVec minus_8_sum) {
    return kLanes == 16 ? sum : sum + minus_8_sum;
  }
};

struct ByteDot {
  static constexpr int kRows = NibbleDot::kRows, kPanels = kTilePanels;
  using Sum = IntVec;
  static Sum start(IntVec minus_8_sum) { return kLanes == 16 ? minus_8_sum << 4 : Sum{}; }
  static Sum add(Sum sum, IntVec weights, IntVec x) {
    if constexpr (kLanes != 16) return dot_bytes<true>(sum, weights, x);
    return dot_bytes<false>(sum, weights ^ static_cast<std::int32_t>(0x80808080u), x);
  }
  static IntVec total(Sum sum, IntVec) { return sum; }
};

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
