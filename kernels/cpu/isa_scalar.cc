#define STAGECOACH_ISA isa_scalar
#define STAGECOACH_LANES 4
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_portable.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/table.h"

namespace stagecoach {

constexpr KernelTable kScalarKernels = STAGECOACH_ISA::make_table("scalar");

}  // namespace stagecoach
