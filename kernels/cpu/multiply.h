// y = x · Wᵀ over panels of 16 outputs, for every type of x and of W. A product (product_*.h) knows
// how a tile of rows and panels is computed; this is the order in which tiles come. Few rows:
// weights pass once, at the speed of memory. More: a panel's block of k meets all rows of a chunk.
#pragma once

#include "kernels/cpu/quant.h"
#include "kernels/cpu/tile.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// The partial sums of a chunk wait in L2 beside its block of x.
constexpr std::int64_t kChunkPanels = 8;

template <typename Type>
inline const typename Type::Element* panel_weights(const MatmulArgs& args, std::int64_t panel) {
  return reinterpret_cast<const typename Type::Element*>(args.weight) + panel * kPanel * args.in;
}

template <Grouped Type>
inline const std::byte* panel_groups(const MatmulArgs& args, std::int64_t panel) {
  return args.weight +
         panel * layout_bytes(matrix_layout(Type::kType), Type::kType, kPanel, args.in);
}

// Adds bias and old y to finished sums (rows, panels · 16) and writes what lies within `out`.
inline void finish(const MatmulArgs& args, const float* sums, std::int64_t sums_stride,
                   std::int64_t row, std::int64_t rows, std::int64_t panel, std::int64_t panels) {
  const std::int64_t column = panel * kPanel;
  const std::int64_t columns = smaller(panels * kPanel, args.out - column);
  for (std::int64_t r = 0; r < rows; ++r) {
    float* y = args.y + (row + r) * args.y_stride + column;
    for (std::int64_t i = 0; i < columns; i += kLanes) {
      const std::int64_t n = columns - i;
      Vec sum = load(sums + r * sums_stride + i);
      if (args.bias != nullptr) sum += load_first(args.bias + column + i, n);
      if (args.accumulate) sum += load_first(y + i, n);
      store_first(y + i, sum, n);
    }
  }
}

// P panels of up to kRows rows, all of k at once.
template <typename Product, int P, int R>
inline void stream_panels(const MatmulArgs& args, std::int64_t panel) {
  float sums[R * P * kPanel];
  Product::template stream<R, P>(args, panel, sums);
  finish(args, sums, P * kPanel, 0, R, panel, P);
}

// A row's sums form a chain of dependent multiply-adds: several panels at once hide its latency and
// give memory several streams. P grows as R shrinks, within the registers.
template <typename Product, int R>
inline void stream_rows(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  constexpr int kFit = Product::kRows * Product::kPanels / R;
  constexpr int P = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  std::int64_t panel = begin;
  for (; panel + P <= end; panel += P) stream_panels<Product, P, R>(args, panel);
  for (; panel < end; ++panel) stream_panels<Product, 1, R>(args, panel);
}

template <typename Product, int Max>
inline void stream_matrix(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.rows == Max) return stream_rows<Product, Max>(args, begin, end);
  if constexpr (Max > 1) stream_matrix<Product, Max - 1>(args, begin, end);
}

// Any number of rows up to Max, each with its own instantiation.
template <typename Product, int P, int Max>
inline void run_rows(const Product& product, std::int64_t row, std::int64_t rows,
                     const PartialSums& sums) {
  if (rows == Max) return product.template run<Max, P>(row, sums);
  if constexpr (Max > 1) run_rows<Product, P, Max - 1>(product, row, rows, sums);
}

// P panels against all rows of the chunk, over the product's block of k.
template <typename Product, int P>
inline void run_panels(Product& product, std::int64_t panel, std::int64_t rows,
                       const PartialSums& sums) {
  product.template enter_panels<P>(panel);
  for_each_tile(rows, Product::kRows, [&](std::int64_t row, std::int64_t count) {
    run_rows<Product, P, Product::kRows>(product, row, count, sums.at_row(row));
  });
}

// Asks for columns [k, k + count) of a panel, wanted when others have met all rows of the chunk:
// runs of some kilobytes are too short for the processor to see them coming.
template <typename Type>
inline void prefetch_panel(const MatmulArgs& args, std::int64_t panel, std::int64_t k,
                           std::int64_t count) {
  const std::byte* begin;
  std::int64_t bytes;
  if constexpr (Grouped<Type>) {
    begin = panel_groups<Type>(args, panel) + k / kGroupCols * kGroupBytes<Type>;
    bytes = (count + kGroupCols - 1) / kGroupCols * kGroupBytes<Type>;
  } else {
    begin = reinterpret_cast<const std::byte*>(panel_weights<Type>(args, panel) + k * kPanel);
    bytes = count * kPanel * static_cast<std::int64_t>(sizeof(typename Type::Element));
  }
  for (std::int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(begin + i, 0, 2);
}

template <typename Product>
inline void multiply_chunk(const MatmulArgs& args, std::int64_t row, std::int64_t rows,
                           std::int64_t panel, std::int64_t panels) {
  alignas(64) float memory[Product::kChunkRows * kChunkPanels * kPanel];
  Product product(args, row, rows);
  for (std::int64_t k = 0; k < args.in; k += Product::kBlockK) {
    product.enter_block(k, smaller(Product::kBlockK, args.in - k));
    PartialSums sums = {memory, kChunkPanels * kPanel, k > 0};
    std::int64_t p = 0;
    for (; p + Product::kPanels <= panels;
         p += Product::kPanels, sums.data += Product::kPanels * kPanel) {
      for (std::int64_t next = p + Product::kPanels;
           next < smaller(p + 2 * Product::kPanels, panels); ++next)
        prefetch_panel<typename Product::Weights>(args, panel + next, k,
                                                  smaller(Product::kBlockK, args.in - k));
      run_panels<Product, Product::kPanels>(product, panel + p, rows, sums);
    }
    for (; p < panels; ++p, sums.data += kPanel)
      run_panels<Product, 1>(product, panel + p, rows, sums);
  }
  finish(args, memory, kChunkPanels * kPanel, row, rows, panel, panels);
}

template <typename Product>
inline void multiply(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.rows <= Product::kRows) return stream_matrix<Product, Product::kRows>(args, begin, end);
  for_each_tile(args.rows, Product::kChunkRows, [&](std::int64_t row, std::int64_t rows) {
    for (std::int64_t panel = begin; panel < end; panel += kChunkPanels)
      multiply_chunk<Product>(args, row, rows, panel, smaller(kChunkPanels, end - panel));
  });
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
