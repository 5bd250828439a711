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
//
// Group layouts `q8.g32.v1` and `q4.g32.v1`: the same panels of 16 rows, each a sequence of groups
// of 32 columns (columns and rows beyond the last are zero). A group:
//
//     f16 scale[16]                      one per row                                32 bytes
//     q8: u32 word[8][16]                word[b][row] holds columns 4b … 4b + 3    512 bytes
//     q4: u32 word[4][16]                word[b][row] holds columns 8b … 8b + 7    256 bytes
//
//   q8: byte j of a word is the signed quant of column 4b + j; weight = quant · scale. Four
//   neighbours in one word are what integer dot products (VNNI) eat.
//   q4: byte j holds column 8b + j in its low half and 8b + 4 + j in its high half, 0 to 15;
//   weight = (quant − 8) · scale. Both products are exact in float32. Words are little-endian.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/include/dtype.h"

namespace stagecoach {

enum class Layout : std::uint8_t { kRows, kPanels16, kQ8Groups32, kQ4Groups32 };

inline constexpr std::int64_t kPanelRows = 16;
inline constexpr std::int64_t kGroupCols = 32;

// The layout of a matrix that is multiplied with, and the type of a table that is only gathered, in
// a model whose weights are `weights`. Tables stay in rows, where a quantised type cannot lie.
constexpr Layout matrix_layout(DType weights) {
  if (weights == DType::kQ8) return Layout::kQ8Groups32;
  return weights == DType::kQ4 ? Layout::kQ4Groups32 : Layout::kPanels16;
}
constexpr DType table_type(DType weights) {
  return is_quantized(weights) ? DType::kF16 : weights;
}

// Whether tensors of this type can have this layout; no function below takes other pairs.
constexpr bool layout_holds(Layout layout, DType type) {
  if (layout == Layout::kRows) return !is_quantized(type);
  return layout == matrix_layout(type);
}

// Bytes that one row of `cols` columns takes, its share of padding columns and scales included.
constexpr std::int64_t layout_row_bytes(Layout layout, DType type, std::int64_t cols) {
  if (!layout_holds(layout, type)) __builtin_trap();
  const std::int64_t groups = (cols + kGroupCols - 1) / kGroupCols;
  constexpr std::int64_t kScaleBytes = 2;
  if (type == DType::kQ8) return groups * (kScaleBytes + kGroupCols);
  if (type == DType::kQ4) return groups * (kScaleBytes + kGroupCols / 2);
  return cols * (type == DType::kF32 ? 4 : 2);
}

// Bytes of a tensor (rows, cols), padding included; a panel is what 16 rows take.
constexpr std::int64_t layout_bytes(Layout layout, DType type, std::int64_t rows,
                                    std::int64_t cols) {
  const std::int64_t stored =
      layout == Layout::kRows ? rows : (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
  return stored * layout_row_bytes(layout, type, cols);
}

// Packs a block of consecutive rows: `source` (rows, cols) float32 row-major → `destination` in
// `layout` and `type`, layout_bytes() long. Except for kRows the block must start at a multiple of
// 16 rows of the whole matrix; blocks of whole panels can then be written one after the other.
// Returns the number of values that `type` cannot hold; the caller decides whether that is an
// error. Plain types: finite values that became infinite (always 0 for f32 and nearly always for
// bf16). Quantised types: values that are not finite or beyond the largest scale (they count as 0).
// Quantising rounds to nearest; how scales are chosen: kernels/common/quantize.h.
std::int64_t pack_rows(Layout layout, DType type, const float* source, std::int64_t rows,
                       std::int64_t cols, std::byte* destination);

// The inverse; exact, what kernels multiply with: rows [row_begin, row_begin + rows) of a packed
// matrix (total_rows, cols) → float32 row-major.
void unpack_rows(Layout layout, DType type, const std::byte* packed, std::int64_t cols,
                 std::int64_t row_begin, std::int64_t rows, float* destination);

}  // namespace stagecoach
