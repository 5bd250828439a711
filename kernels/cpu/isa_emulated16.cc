#define STAGECOACH_ISA isa_emulated16
#define STAGECOACH_LANES 16
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_portable.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/product_bf16.h"
#include "kernels/cpu/table.h"

namespace stagecoach {

constexpr KernelTable kEmulated16Kernels =
    STAGECOACH_ISA::make_table("emulated16", STAGECOACH_ISA::multiply_bf16);

}  // namespace stagecoach
