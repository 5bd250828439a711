// One table per translation unit isa_*.cc. Reading a table is safe anywhere; calling its kernels
// needs the instruction set.
#pragma once

#include "kernels/include/ops.h"

namespace stagecoach {

extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kScalarKernels;

// Products by instructions that only some processors of a kind have (isa_*.cc of the same name).
void matmul_int8_avx512_vnni(const MatmulArgs& args, std::int64_t begin, std::int64_t end);
void matmul_bf16_avx512(const MatmulArgs& args, std::int64_t begin, std::int64_t end);
void matmul_int8_avx_vnni(const MatmulArgs& args, std::int64_t begin, std::int64_t end);

// For tests: the tilings of AVX2 and AVX-512 on the baseline (library stagecoach_kernels_ref).
extern const KernelTable kEmulated8Kernels;
extern const KernelTable kEmulated16Kernels;

}  // namespace stagecoach
