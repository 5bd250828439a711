// AVX-512 with BF16: the bf16 products.
#define STAGECOACH_ISA isa_avx512_bf16
// The vector type first: everything after is written over it.
#include "kernels/cpu/vec_avx512.h"

#include "kernels/cpu/isa_tables.h"
#include "kernels/cpu/product_bf16.h"

namespace stagecoach {

void matmul_bf16_avx512(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  STAGECOACH_ISA::multiply_bf16(args, begin, end);
}

}  // namespace stagecoach
