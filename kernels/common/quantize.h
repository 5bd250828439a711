// Packing into the group layouts (pack.h): how a scale is chosen for 32 weights of a row.
//
// Candidates put the weight of largest magnitude on a level, one after another: q8 on 127, 126 …
// 112, q4 on −8, 7, −7, 6, −6, 5. Each scale is rounded to float16 and the quants to it afterwards,
// and the candidate with the smallest squared error stays. GGUF's Q8_0 and Q4_0 are the first ones.
//
// The bits are the same on every PC: IEEE +, −, ·, / and comparisons in one order, baseline code.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/include/dtype.h"

namespace stagecoach {

// pack_rows and unpack_rows of the group layout of `type`, a quantised type.
std::int64_t pack_groups(DType type, const float* source, std::int64_t rows, std::int64_t cols,
                         std::byte* destination);
void unpack_groups(DType type, const std::byte* packed, std::int64_t cols, std::int64_t row_begin,
                   std::int64_t rows, float* destination);

}  // namespace stagecoach
