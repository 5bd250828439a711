// The dot-product instructions of x86-64, chosen at run time: each loop is compiled for its own
// instruction set, the file for the baseline.
#include "kernels/probe/dot_loops.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace stagecoach {

#if defined(__x86_64__)
namespace {

// Independent, to hide latencies of 4 to 6 cycles at up to two instructions a cycle; with the
// operands they fit 16 registers.
constexpr int kChains = 12;
// Three instructions a step keep the units busy with fewer, and need a register between them.
constexpr int kMaddChains = 8;

// Makes the compiler believe that the operand changes: what does not change it would compute once,
// before the loop.
#define STAGECOACH_CHANGES(operand) asm volatile("" : "+v"(operand))

double operations(int lanes, int products_a_lane, int chains) {
  return 2.0 * lanes * products_a_lane * chains * kDotRounds;
}

__attribute__((target("avx2,fma"))) double f32_avx2() {
  __m256 sum[kChains];
  for (__m256& s : sum) s = _mm256_set1_ps(probe_value());
  const __m256 a = _mm256_set1_ps(probe_value()), b = a * 0.5f;
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m256& s : sum) s = _mm256_fmadd_ps(s, b, a);
  for (const __m256& s : sum) keep_probe_value(s[0]);
  return operations(8, 1, kChains);
}

__attribute__((target("avx512f"))) double f32_avx512() {
  __m512 sum[kChains];
  for (__m512& s : sum) s = _mm512_set1_ps(probe_value());
  const __m512 a = _mm512_set1_ps(probe_value()), b = a * 0.5f;
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m512& s : sum) s = _mm512_fmadd_ps(s, b, a);
  for (const __m512& s : sum) keep_probe_value(s[0]);
  return operations(16, 1, kChains);
}

__attribute__((target("avx512f,avx512bw,avx512bf16"))) double bf16_avx512() {
  __m512 sum[kChains];
  for (__m512& s : sum) s = _mm512_set1_ps(probe_value());
  const __m512 one = _mm512_set1_ps(probe_value());
  const __m512bh a = _mm512_cvtne2ps_pbh(one, one), b = _mm512_cvtne2ps_pbh(one * 0.5f, one);
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m512& s : sum) s = _mm512_dpbf16_ps(s, a, b);
  for (const __m512& s : sum) keep_probe_value(s[0]);
  return operations(16, 2, kChains);
}

__attribute__((target("avx512f,avx512vnni"))) double int8_avx512_vnni() {
  __m512i sum[kChains];
  for (__m512i& s : sum) s = _mm512_set1_epi32(static_cast<int>(probe_value()));
  const __m512i a = _mm512_set1_epi8(static_cast<char>(probe_value())), b = _mm512_add_epi32(a, a);
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, a, b);
  for (const __m512i& s : sum) keep_probe_value(static_cast<float>(s[0]));
  return operations(16, 4, kChains);
}

__attribute__((target("avx2,avxvnni"))) double int8_avx_vnni() {
  __m256i sum[kChains];
  for (__m256i& s : sum) s = _mm256_set1_epi32(static_cast<int>(probe_value()));
  const __m256i a = _mm256_set1_epi8(static_cast<char>(probe_value())), b = _mm256_add_epi32(a, a);
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m256i& s : sum) s = _mm256_dpbusd_avx_epi32(s, a, b);
  for (const __m256i& s : sum) keep_probe_value(static_cast<float>(s[0]));
  return operations(8, 4, kChains);
}

// Pairs of products in 16 bits, pairs of those in 32, then the sum.
__attribute__((target("avx2"))) double int8_avx2() {
  __m256i sum[kMaddChains];
  for (__m256i& s : sum) s = _mm256_set1_epi32(static_cast<int>(probe_value()));
  __m256i a = _mm256_set1_epi8(static_cast<char>(probe_value()));
  const __m256i b = _mm256_add_epi32(a, a), ones = _mm256_srli_epi16(a, 8);
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m256i& s : sum) {
      STAGECOACH_CHANGES(a);
      s = _mm256_add_epi32(s, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    }
  for (const __m256i& s : sum) keep_probe_value(static_cast<float>(s[0]));
  return operations(8, 4, kMaddChains);
}

__attribute__((target("avx512f,avx512bw"))) double int8_avx512() {
  __m512i sum[kMaddChains];
  for (__m512i& s : sum) s = _mm512_set1_epi32(static_cast<int>(probe_value()));
  __m512i a = _mm512_set1_epi8(static_cast<char>(probe_value()));
  const __m512i b = _mm512_add_epi32(a, a), ones = _mm512_srli_epi16(a, 8);
  for (int i = 0; i < kDotRounds; ++i)
#pragma GCC unroll 16
    for (__m512i& s : sum) {
      STAGECOACH_CHANGES(a);
      s = _mm512_add_epi32(s, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
    }
  for (const __m512i& s : sum) keep_probe_value(static_cast<float>(s[0]));
  return operations(16, 4, kMaddChains);
}

// clang 14's __builtin_cpu_supports does not know it. The system keeps the registers where it does
// for AVX2.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 &&
         (a & 1u << 4) != 0;
}

constexpr DotLoop kLoops[] = {
    {DotType::kF32, "avx512", "AVX-512 FMA", [] { return __builtin_cpu_supports("avx512f") != 0; },
     f32_avx512},
    {DotType::kF32, "avx", "AVX2 FMA",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, f32_avx2},
    {DotType::kBF16, "avx512-bf16", "AVX-512 vdpbf16ps",
     [] { return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512bf16"); },
     bf16_avx512},
    {DotType::kInt8, "avx512-", "AVX-512 vpdpbusd",
     [] { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni"); },
     int8_avx512_vnni},
    {DotType::kInt8, "avx-vnni", "AVX vpdpbusd", has_avx_vnni, int8_avx_vnni},
    {DotType::kInt8, "avx512", "AVX-512 vpmaddubsw",
     [] { return __builtin_cpu_supports("avx512bw") != 0; }, int8_avx512},
    {DotType::kInt8, "avx", "AVX2 vpmaddubsw", [] { return __builtin_cpu_supports("avx2") != 0; },
     int8_avx2},
};

}  // namespace

std::span<const DotLoop> x86_dot_loops() {
  return kLoops;
}
#else
std::span<const DotLoop> x86_dot_loops() {
  return {};
}
#endif

}  // namespace stagecoach
