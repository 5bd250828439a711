#include "kernels/bench/probes.h"

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace stagecoach {
namespace {

constexpr int kRounds = 2'000'000;
constexpr int kChains = 12;  // independent, to hide a latency of 4 to 5 cycles at two a cycle

// Read and written where the optimiser must neither know a value nor drop one: chains that it can
// tell to be equal become one.
volatile float g_value = 1.0f;

using Four = float __attribute__((vector_size(16)));

double multiply_then_add() {
  Four sum[kChains];
  for (Four& s : sum) s = Four{} + g_value;
  const Four a = Four{} + g_value, b = a * 0.5f;
  for (int i = 0; i < kRounds; ++i)
#pragma GCC unroll 16
    for (Four& s : sum) s = s * b + a;
  for (const Four& s : sum) g_value = s[0] * 0.5f;
  return 2.0 * 4 * kChains * kRounds;
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double fused_avx2() {
  __m256 sum[kChains];
  for (__m256& s : sum) s = _mm256_set1_ps(g_value);
  const __m256 a = _mm256_set1_ps(g_value), b = a * 0.5f;
  for (int i = 0; i < kRounds; ++i)
#pragma GCC unroll 16
    for (__m256& s : sum) s = _mm256_fmadd_ps(s, b, a);
  for (const __m256& s : sum) g_value = s[0] * 0.5f;
  return 2.0 * 8 * kChains * kRounds;
}

__attribute__((target("avx512f"))) double fused_avx512() {
  __m512 sum[kChains];
  for (__m512& s : sum) s = _mm512_set1_ps(g_value);
  const __m512 a = _mm512_set1_ps(g_value), b = a * 0.5f;
  for (int i = 0; i < kRounds; ++i)
#pragma GCC unroll 16
    for (__m512& s : sum) s = _mm512_fmadd_ps(s, b, a);
  for (const __m512& s : sum) g_value = s[0] * 0.5f;
  return 2.0 * 16 * kChains * kRounds;
}
#endif

}  // namespace

double probe_flops(const std::string& isa) {
  double flops = 0;
  const double seconds = median_seconds(5, [&] {
#if defined(__x86_64__)
    if (isa == "avx512") return void(flops = fused_avx512());
    if (isa == "avx2") return void(flops = fused_avx2());
#endif
    flops = multiply_then_add();
  });
  return flops / seconds;
}

double probe_read_bandwidth(std::size_t bytes) {
  using Words = std::uint64_t __attribute__((vector_size(16)));
  const std::vector<Words> data(bytes / sizeof(Words), Words{1, 2});
  // Four streams, as the kernels read: one alone leaves prefetchers idle.
  constexpr std::size_t kStreams = 4;
  const std::size_t stream = data.size() / kStreams;
  const double seconds = median_seconds(5, [&] {
    Words sum[kStreams] = {};
    for (std::size_t i = 0; i + 4 <= stream; i += 4)
      for (std::size_t j = 0; j < kStreams; ++j)
        for (std::size_t k = 0; k < 4; ++k) sum[j] += data[j * stream + i + k];
    g_value = static_cast<float>((sum[0] + sum[1] + sum[2] + sum[3])[0] % 2);
  });
  return static_cast<double>(bytes) / seconds;
}

}  // namespace stagecoach
