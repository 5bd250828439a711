#include <array>
#include <cstring>
#include <span>

#include "kernels/cpu/isa_tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace stagecoach {
namespace {

#ifdef STAGECOACH_HAVE_X86_KERNELS
// clang 14's __builtin_cpu_supports does not know it.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1u << 4) != 0;
}
#endif

struct Candidate {
  KernelTable table;
  bool runs_here;
};

// A table with another's kernels but for those that newer instructions make faster.
[[maybe_unused]] KernelTable extended(const KernelTable& base, const char* isa,
                                      decltype(KernelTable::matmul_int8) int8,
                                      decltype(KernelTable::matmul_bf16) bf16 = nullptr) {
  KernelTable table = base;
  table.isa = isa;
  table.matmul_int8 = int8;
  table.matmul_bf16 = bf16;
  return table;
}

// Best first.
std::span<const Candidate> candidates() {
  static const auto list = [] {
#ifdef STAGECOACH_HAVE_X86_KERNELS
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bf16 = vnni && __builtin_cpu_supports("avx512bf16");
#endif
    return std::to_array<Candidate>({
#ifdef STAGECOACH_HAVE_X86_KERNELS
        {extended(kAvx512Kernels, "avx512-bf16", matmul_int8_avx512_vnni, matmul_bf16_avx512),
         bf16},
        {extended(kAvx512Kernels, "avx512-vnni", matmul_int8_avx512_vnni), vnni},
        {kAvx512Kernels, avx512},
        {extended(kAvx2Kernels, "avx-vnni", matmul_int8_avx_vnni), avx2 && has_avx_vnni()},
        {kAvx2Kernels, avx2},
#endif
        {kScalarKernels, true},
    });
  }();
  return list;
}

}  // namespace

IsaList supported_isas() {
  IsaList list = {};
  for (const Candidate& candidate : candidates())
    if (candidate.runs_here) list.names[list.count++] = candidate.table.isa;
  return list;
}

const KernelTable* kernel_table(const char* isa) {
  for (const Candidate& candidate : candidates())
    if (candidate.runs_here && std::strcmp(candidate.table.isa, isa) == 0) return &candidate.table;
  return nullptr;
}

}  // namespace stagecoach
