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

inline Vec load_bf16(const std::uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
}

// The low four bits of each lane, 0 … 15, less 8.
inline Vec nibbles_less_8(IntVec v) {
  return __builtin_convertvector((v & 15) - 8, Vec);
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA

#include "kernels/cpu/dot_x86.h"
