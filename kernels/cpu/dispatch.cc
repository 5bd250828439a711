#include <cstring>

#include "kernels/cpu/isa_tables.h"

namespace stagecoach {
namespace {

struct Candidate {
  const KernelTable* table;
  bool (*runs_here)();
};

// Best first.
constexpr Candidate kCandidates[] = {
#ifdef STAGECOACH_HAVE_X86_KERNELS
    {&kAvx512Kernels,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
    {&kAvx2Kernels,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {&kScalarKernels, [] { return true; }},
};

}  // namespace

IsaList supported_isas() {
  IsaList list = {};
  for (const Candidate& candidate : kCandidates)
    if (candidate.runs_here()) list.names[list.count++] = candidate.table->isa;
  return list;
}

const KernelTable* kernel_table(const char* isa) {
  for (const Candidate& candidate : kCandidates)
    if (candidate.runs_here() && std::strcmp(candidate.table->isa, isa) == 0)
      return candidate.table;
  return nullptr;
}

}  // namespace stagecoach
