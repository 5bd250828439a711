// AVX-512 with VNNI: the integer products; all else is AVX-512's.
#define STAGECOACH_ISA isa_avx512_vnni
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/product_int8.h"

namespace stagecoach {

void matmul_int8_avx512_vnni(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  STAGECOACH_ISA::multiply_int8<STAGECOACH_ISA::Int8Product<STAGECOACH_ISA::AsQ8>>(args, begin,
                                                                                   end);
}

}  // namespace stagecoach
