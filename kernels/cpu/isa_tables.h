// One table per translation unit isa_*.cc. Reading a table is safe anywhere; calling its kernels
// needs the instruction set.
#pragma once

#include "kernels/include/ops.h"

namespace stagecoach {

extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kScalarKernels;

// For tests: the tilings of AVX2 and AVX-512 on the baseline (library stagecoach_kernels_ref).
extern const KernelTable kEmulated8Kernels;
extern const KernelTable kEmulated16Kernels;

}  // namespace stagecoach
