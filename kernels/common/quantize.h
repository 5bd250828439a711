// Packing into the group layouts (pack.h): how a scale is chosen for 32 weights of a row.
//
// q8: the largest magnitude becomes 127. The scale is rounded to float16 first and the quants to it
// afterwards, so the rounding of the scale costs nothing but a little range.
//
// q4: minimises the squared error over the group. A handful of candidates puts the weight of
// largest magnitude at different levels of −8 … 7, on either end. For each the quants follow by
// rounding, and for the quants q the best scale in closed form: s = Σwq / Σq², which leaves an
// error of Σw² − (Σwq)² / Σq². The best candidate's scale, refined once more in the same way, is
// rounded to float16, and the final quants are rounded to that. GGUF's Q4_0 is the candidate −8
// without the rest.
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
