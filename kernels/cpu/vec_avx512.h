// Sixteen float lanes: AVX-512 F, BW, VL, DQ. See vec_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr int kLanes = 16;
using Vec = float __attribute__((vector_size(64)));
using IntVec = std::int32_t __attribute__((vector_size(64)));

// 12 × 2 accumulators and 2 weights of 32 registers. One panel alone would need a broadcast load
// for every multiply-add, and two loads a cycle are all there are.
constexpr int kTileRows = 12;
constexpr int kTilePanels = 2;

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return (Vec)_mm512_fmadd_ps(a, b, c);
}

inline Vec load_f16(const std::uint16_t* p) {
  // The unmasked form starts from a register left undefined on purpose, which GCC 12 warns about.
  return (Vec)_mm512_maskz_cvtph_ps(0xffff,
                                    _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

inline void store_f16(std::uint16_t* p, Vec v) {
  const __m256i half = _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), half);
}

inline Vec load_bf16(const std::uint16_t* p) {
  using Narrow = std::uint16_t __attribute__((vector_size(32)));
  Narrow half;
  __builtin_memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, IntVec) << 16);
}

inline Vec load_i8(const std::int8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return __builtin_convertvector((IntVec)_mm512_maskz_cvtepi8_epi32(0xffff, bytes), Vec);
}

// Lanes within int8's range.
inline void store_i8(std::int8_t* p, IntVec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
}

// The low four bits of each lane, 0 … 15, less 8: a look-up, since a permutation ignores the other
// bits of its index.
inline Vec nibbles_less_8(IntVec v) {
  constexpr Vec kValues = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
  return (Vec)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)v, (__m512)kValues);
}

#if defined(__AVX512BF16__)
// sum + a · b over pairs of bfloat16, the upper halves first, each with its own rounding.
inline Vec dot_bf16(Vec sum, IntVec a, IntVec b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

// The low four bits, 0 … 15, less 8, of bytes j and j + 1 of each lane as a pair of bfloat16; j is
// 0 or 2. The look-up takes five bits: the fifth, whatever it is, finds the same value.
inline IntVec nibble_pairs_less_8(IntVec v, int j) {
  using Halves = std::uint16_t __attribute__((vector_size(64)));
  constexpr Halves kValues = {0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                              0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
                              0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
                              0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
  const __m512i low_byte_of_halves = _mm512_maskz_broadcast_i32x4(
      0xffff, _mm_add_epi8(_mm_setr_epi8(0, 0, 1, 0, 4, 0, 5, 0, 8, 0, 9, 0, 12, 0, 13, 0),
                           _mm_set1_epi8(static_cast<char>(j))));
  const __m512i indices = _mm512_shuffle_epi8((__m512i)v, low_byte_of_halves);
  return (IntVec)_mm512_maskz_permutexvar_epi16(0xffffffff, indices, (__m512i)kValues);
}
#endif

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA

#include "kernels/cpu/dot_x86.h"
