// Eight float lanes: AVX2, FMA, F16C. The part of the vector type that only intrinsics express; the
// rest is generic, in vec.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr int kLanes = 8;
using Vec = float __attribute__((vector_size(32)));
using IntVec = std::int32_t __attribute__((vector_size(32)));

// The tile of the matrix kernels: rows × panels of 16 outputs. 6 × 2 accumulators, 2 weights and a
// broadcast fill 15 of the 16 registers.
constexpr int kTileRows = 6;
constexpr int kTilePanels = 1;

inline Vec multiply_add(Vec a, Vec b, Vec c) {
  return (Vec)_mm256_fmadd_ps(a, b, c);
}

inline Vec load_f16(const std::uint16_t* p) {
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

inline void store_f16(std::uint16_t* p, Vec v) {
  const __m128i half = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), half);
}

inline Vec load_bf16(const std::uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
}

inline Vec load_i8(const std::int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

// Lanes within int8's range.
inline void store_i8(std::int8_t* p, IntVec v) {
  const __m256i words = _mm256_packs_epi32((__m256i)v, (__m256i)v);  // in each half, twice
  const __m256i bytes = _mm256_packs_epi16(words, words);
  const std::int64_t all = static_cast<std::uint32_t>(_mm256_extract_epi32(bytes, 0)) |
                           static_cast<std::int64_t>(_mm256_extract_epi32(bytes, 4)) << 32;
  __builtin_memcpy(p, &all, sizeof all);
}

// The low four bits of each lane, 0 … 15, less 8.
inline Vec nibbles_less_8(IntVec v) {
  return __builtin_convertvector((v & 15) - 8, Vec);
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA

#include "kernels/cpu/dot_x86.h"
