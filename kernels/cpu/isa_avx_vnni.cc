// AVX2 with AVX-VNNI: the integer products; all else is AVX2's.
#define STAGECOACH_ISA isa_avx_vnni
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_avx2.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/product_int8.h"

namespace stagecoach {

void matmul_int8_avx_vnni(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  STAGECOACH_ISA::multiply_int8<STAGECOACH_ISA::Int8Product<STAGECOACH_ISA::AsQ8>>(args, begin,
                                                                                   end);
}

}  // namespace stagecoach
