#define STAGECOACH_ISA isa_emulated8
#define STAGECOACH_LANES 8
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_portable.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/product_bf16.h"
#include "kernels/cpu/table.h"

namespace stagecoach {

constexpr KernelTable kEmulated8Kernels =
    STAGECOACH_ISA::make_table("emulated8", STAGECOACH_ISA::multiply_bf16);

}  // namespace stagecoach
