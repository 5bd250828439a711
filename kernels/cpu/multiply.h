// y = x · Wᵀ over panels of 16 outputs, for every type of x and of W. A product (product_*.h) knows
// how a tile of rows and panels is computed; this is the order in which tiles come. Few rows:
// a panel's weights pass as they lie in memory, once for each tile of rows. More: a panel's block
// of k meets all rows of a chunk.
#pragma once

#include "kernels/cpu/quant.h"
#include "kernels/cpu/tile.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// The partial sums of a chunk wait in L2 beside its block of x, which is brought there once for so
// many panels at most; a caller whose L2 is small asks for fewer at a time.
constexpr std::int64_t kChunkPanels = kMostChunkPanels;

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

// P panels of R rows, all of k at once.
template <typename Product, int P, int R>
inline void stream_panels(const MatmulArgs& args, std::int64_t panel) {
  float sums[R * P * kPanel];
  Product::template stream<R, P>(args, panel, sums);
  finish(args, sums, P * kPanel, 0, R, panel, P);
}

// A row's sums form a chain of dependent multiply-adds: several panels at once hide its latency and
// give memory several streams. P grows as R shrinks, within the registers.
template <typename Product, int R, int P>
inline void stream_rows(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if constexpr (R * P > Product::kSums) {
    stream_rows<Product, R, P / 2>(args, begin, end);
  } else {
    for (; begin + P <= end; begin += P) stream_panels<Product, P, R>(args, begin);
    if constexpr (P > 1) stream_rows<Product, R, P / 2>(args, begin, end);
  }
}

template <typename Product, int Max>
inline void stream_matrix(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.rows == Max) return stream_rows<Product, Max, 4>(args, begin, end);
  if constexpr (Max > 1) stream_matrix<Product, Max - 1>(args, begin, end);
}

// Tiles of rows take turns at a few panels: weights come from memory for the first, from a cache
// for the others.
template <typename Product>
inline void stream(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kStep = 2;
  for (std::int64_t panel = begin; panel < end; panel += kStep)
    for_each_tile(args.rows, Product::kStreamRows, [&](std::int64_t row, std::int64_t rows) {
      MatmulArgs part = args;
      part.x.data += row * args.x.stride;
      part.y += row * args.y_stride;
      part.rows = rows;
      stream_matrix<Product, Product::kStreamRows>(part, panel, smaller(panel + kStep, end));
    });
}

// Any number of rows up to Max, each with its own instantiation.
template <typename Product, int P, int Max>
inline void run_rows(const Product& product, std::int64_t row, std::int64_t rows,
                     const PartialSums& sums) {
  if (rows == Max) return product.template run<Max, P>(row, sums);
  if constexpr (Max > 1) run_rows<Product, P, Max - 1>(product, row, rows, sums);
}

// Weights that lie together in memory: a block of k of one panel.
struct Extent {
  const std::byte* begin;
  std::int64_t bytes;
};

template <typename Type>
inline Extent panel_extent(const MatmulArgs& args, std::int64_t panel, std::int64_t k,
                           std::int64_t count) {
  if constexpr (Grouped<Type>)
    return {panel_groups<Type>(args, panel) + k / kGroupCols * kGroupBytes<Type>,
            num_groups(count) * kGroupBytes<Type>};
  else
    return {reinterpret_cast<const std::byte*>(panel_weights<Type>(args, panel) + k * kPanel),
            count * kPanel * static_cast<std::int64_t>(sizeof(typename Type::Element))};
}

// Rows [row, row + rows) against panels [panel, panel + panels).
template <typename Product>
class Chunk {
 public:
  Chunk(const MatmulArgs& args, std::int64_t row, std::int64_t rows, std::int64_t panel,
        std::int64_t panels)
      : args_(args), rows_(rows), panel_(panel), panels_(panels), product_(args, row, rows) {}

  // sums: (rows, panels · 16)
  void run(float* sums) {
    for (std::int64_t k = 0; k < args_.in; k += Product::kBlockK) {
      product_.enter_block(k, smaller(Product::kBlockK, args_.in - k));
      std::int64_t p = 0;
      for (; p + kStep <= panels_; p += kStep) run_panels<Product::kPanels>(k, p, sums);
      for (; p < panels_; ++p) run_panels<1>(k, p, sums);
    }
  }

 private:
  static constexpr std::int64_t kStep = Product::kPanels;

  // P panels against all rows, over one block of k. Meanwhile the weights that come next are asked
  // for, a part with each tile of rows: they lie in runs of some kilobytes, too short for the
  // processor to see them coming.
  template <int P>
  void run_panels(std::int64_t k, std::int64_t p, float* memory) {
    product_.template enter_panels<P>(panel_ + p);
    Extent next[kStep] = {};
    const bool last = p + P >= panels_;
    const std::int64_t next_k = last ? k + Product::kBlockK : k;
    for (std::int64_t i = 0, q = last ? 0 : p + P; i < kStep && q < panels_ && next_k < args_.in;
         ++i, ++q)
      next[i] = panel_extent<typename Product::Weights>(
          args_, panel_ + q, next_k, smaller(Product::kBlockK, args_.in - next_k));
    const PartialSums sums = {memory + p * kPanel, panels_ * kPanel, k > 0};
    for_each_tile(rows_, Product::kRows, [&](std::int64_t row, std::int64_t count) {
      for (const Extent& extent : next) {
        const std::int64_t end = extent.bytes * (row + count) / rows_;
        for (std::int64_t i = extent.bytes * row / rows_ / kLine * kLine; i < end; i += kLine)
          __builtin_prefetch(extent.begin + i);
      }
      run_rows<Product, P, Product::kRows>(product_, row, count, sums.at_row(row));
    });
  }

  static constexpr std::int64_t kLine = 64;

  const MatmulArgs& args_;
  const std::int64_t rows_, panel_, panels_;
  Product product_;
};

// A Product's kStreamRows are the most rows of a tile that streams, its kFewRows those up to which
// it does.
template <typename Product>
inline void multiply(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.rows <= Product::kStreamRows)
    return stream_matrix<Product, Product::kStreamRows>(args, begin, end);
  if (args.rows <= Product::kFewRows) return stream<Product>(args, begin, end);
  for_each_tile(args.rows, Product::kChunkRows, [&](std::int64_t row, std::int64_t rows) {
    alignas(64) float sums[Product::kChunkRows * kChunkPanels * kPanel];
    for (std::int64_t panel = begin; panel < end; panel += kChunkPanels) {
      const std::int64_t panels = smaller(kChunkPanels, end - panel);
      Chunk<Product>(args, row, rows, panel, panels).run(sums);
      finish(args, sums, panels * kPanel, row, rows, panel, panels);
    }
  });
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
