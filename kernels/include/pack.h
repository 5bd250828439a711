// The portable weight layouts. Pure host code: the importer packs with it, kernels read what it
// packs.
//
// Panel layout `p16.v1` of a matrix W (rows = out features, cols = in features):
//   rows are grouped into panels of 16; a panel is stored column by column:
//
//     panel 0: W[0..15][0] W[0..15][1] … W[0..15][cols-1]
//     panel 1: W[16..31][0] …
//
//   Rows beyond the last are zero. 16 outputs are one AVX-512 or two AVX2 vectors, so GEMV and GEMM
//   vectorise over outputs and accumulate each output in ascending k, with no horizontal sums: that
//   is what makes results independent of batch and split. Row r, column k stands at element
//   (r / 16) · 16 · cols + k · 16 + r % 16.
//
// Row layout `rows.v1`: plain row-major, for vectors (norms, biases; always f32) and for tables
// that are only ever gathered.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/include/dtype.h"

namespace stagecoach {

enum class Layout : std::uint8_t { kRows, kPanels16 };

inline constexpr std::int64_t kPanelRows = 16;

// Elements that `rows` × `cols` take in `layout`, padding included.
constexpr std::int64_t layout_elements(Layout layout, std::int64_t rows, std::int64_t cols) {
  if (layout == Layout::kRows) return rows * cols;
  return (rows + kPanelRows - 1) / kPanelRows * kPanelRows * cols;
}

constexpr std::int64_t layout_bytes(Layout layout, DType type, std::int64_t rows,
                                    std::int64_t cols) {
  return layout_elements(layout, rows, cols) * static_cast<std::int64_t>(dtype_size(type));
}

// Packs a block of consecutive rows: `source` (rows, cols) float32 row-major → `destination` in
// `layout` and `type`, layout_bytes() long. For kPanels16 the block must start at a multiple of 16
// rows of the whole matrix; blocks of whole panels can then be written one after the other.
// Returns the number of finite values that became infinite in `type` (always 0 for f32 and nearly
// always for bf16); the caller decides whether that is an error.
std::int64_t pack_rows(Layout layout, DType type, const float* source, std::int64_t rows,
                       std::int64_t cols, std::byte* destination);

// The inverse, exact: rows [row_begin, row_begin + rows) of a packed matrix (total_rows, cols)
// → float32 row-major.
void unpack_rows(Layout layout, DType type, const std::byte* packed, std::int64_t cols,
                 std::int64_t row_begin, std::int64_t rows, float* destination);

}  // namespace stagecoach
