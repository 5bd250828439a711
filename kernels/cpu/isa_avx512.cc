#define STAGECOACH_ISA isa_avx512
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/product_planes.h"
#include "kernels/cpu/table.h"

namespace stagecoach {

constexpr KernelTable kAvx512Kernels =
    STAGECOACH_ISA::make_table<STAGECOACH_ISA::PlanesProduct>("avx512");

}  // namespace stagecoach
