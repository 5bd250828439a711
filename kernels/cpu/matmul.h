// y = x · Wᵀ over panels of 16 outputs. Few rows: weights are converted in registers and read once,
// at the speed of memory. More: a panel's block of k is converted once and meets all rows of a
// chunk.
#pragma once

#include <type_traits>

#include "kernels/cpu/quant.h"
#include "kernels/cpu/tile.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// x of one chunk and k block (96 · 256 floats, 96 KiB) stays in L2 while the chunk's panels pass,
// one panel of that k block (16 KiB) stays in L1 while the rows pass; the partial sums take 48 KiB
// of stack.
constexpr std::int64_t kChunkRows = kTileRows * 16 <= 96 ? kTileRows * 16 : 96;
constexpr std::int64_t kChunkPanels = 8;
constexpr std::int64_t kBlockK = 256;
static_assert(kBlockK % kGroupCols == 0);

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
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

template <typename Type>
inline const typename Type::Element* panel_weights(const MatmulArgs& args, std::int64_t panel) {
  return reinterpret_cast<const typename Type::Element*>(args.weight) + panel * kPanel * args.in;
}

template <Grouped Type>
inline const std::byte* panel_groups(const MatmulArgs& args, std::int64_t panel) {
  return args.weight +
         panel * layout_bytes(matrix_layout(Type::kType), Type::kType, kPanel, args.in);
}

// P panels of up to kTileRows rows, all of k at once.
template <typename Type, int P, int R>
inline void stream_panels(const MatmulArgs& args, std::int64_t panel) {
  float sums[kTileRows * P * kPanel];
  const std::int64_t stride = P * kPanel;
  if constexpr (Grouped<Type>) {
    const std::byte* const groups = panel_groups<Type>(args, panel);
    run_group_tile<Type, R, P>({args.x, args.x_stride, groups,
                                panel_groups<Type>(args, panel + 1) - groups, args.in, sums,
                                stride});
  } else {
    run_tile<Type, R, P>({args.x, args.x_stride, panel_weights<Type>(args, panel), kPanel,
                          kPanel * args.in, args.in, sums, stride, false});
  }
  finish(args, sums, stride, 0, R, panel, P);
}

// A row's sums form a chain of dependent multiply-adds: several panels at once hide its latency and
// give memory several streams. P grows as R shrinks, within the registers.
template <typename Type, int R>
inline void matmul_few_rows(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  constexpr int kFit = kTileRows * kTilePanels / R;
  constexpr int P = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  std::int64_t panel = begin;
  for (; panel + P <= end; panel += P) stream_panels<Type, P, R>(args, panel);
  for (; panel < end; ++panel) stream_panels<Type, 1, R>(args, panel);
}

template <typename Type, int Max>
inline void matmul_stream(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.rows == Max) return matmul_few_rows<Type, Max>(args, begin, end);
  if constexpr (Max > 1) matmul_stream<Type, Max - 1>(args, begin, end);
}

// One chunk of rows against a group of panels.
struct Chunk {
  std::int64_t row, rows;
  std::int64_t panel, panels;
};

// All tiles of a chunk's rows against P panels of one k block, whose weights `b` are float32.
template <int P>
inline void run_chunk_tiles(const MatmulArgs& args, const Chunk& chunk, Tile<AsF32> tile,
                            std::int64_t k) {
  float* const sums = tile.c;
  for_each_tile(chunk.rows, [&](std::int64_t r, std::int64_t count) {
    tile.a = args.x + (chunk.row + r) * args.x_stride + k;
    tile.c = sums + r * tile.c_stride;
    run_tile_rows<AsF32, P, kTileRows>(tile, count);
  });
}

// Weights of P panels over one k block as float32: where they are, or converted into `buffer`.
template <typename Type, int P>
inline void place_weights(const MatmulArgs& args, std::int64_t panel, std::int64_t k,
                          std::int64_t count, float* buffer, Tile<AsF32>& tile) {
  tile.b = buffer;
  tile.b_panel = kBlockK * kPanel;
  if constexpr (std::is_same_v<Type, AsF32>) {
    tile.b = panel_weights<Type>(args, panel) + k * kPanel;
    tile.b_panel = kPanel * args.in;
  } else if constexpr (Grouped<Type>) {
    for (int p = 0; p < P; ++p)
      expand_groups<Type>(panel_groups<Type>(args, panel + p) + k / kGroupCols * kGroupBytes<Type>,
                          count, buffer + p * tile.b_panel);
  } else {
    for (int p = 0; p < P; ++p) {
      const typename Type::Element* source = panel_weights<Type>(args, panel + p) + k * kPanel;
      for (std::int64_t i = 0; i < count * kPanel; i += kLanes)
        store(buffer + p * tile.b_panel + i, Type::load_vec(source + i));
    }
  }
}

template <typename Type>
inline void matmul_chunk(const MatmulArgs& args, const Chunk& chunk) {
  alignas(64) float sums[kChunkRows * kChunkPanels * kPanel];
  alignas(64) float buffer[kTilePanels * kBlockK * kPanel];
  for (std::int64_t k = 0; k < args.in; k += kBlockK) {
    const std::int64_t count = smaller(kBlockK, args.in - k);
    std::int64_t p = 0;
    Tile<AsF32> tile = {nullptr, args.x_stride,         nullptr, kPanel, 0, count,
                        nullptr, kChunkPanels * kPanel, k > 0};
    for (; p + kTilePanels <= chunk.panels; p += kTilePanels) {
      place_weights<Type, kTilePanels>(args, chunk.panel + p, k, count, buffer, tile);
      tile.c = sums + p * kPanel;
      run_chunk_tiles<kTilePanels>(args, chunk, tile, k);
    }
    for (; p < chunk.panels; ++p) {
      place_weights<Type, 1>(args, chunk.panel + p, k, count, buffer, tile);
      tile.c = sums + p * kPanel;
      run_chunk_tiles<1>(args, chunk, tile, k);
    }
  }
  finish(args, sums, kChunkPanels * kPanel, chunk.row, chunk.rows, chunk.panel, chunk.panels);
}

template <typename Type>
inline void matmul_typed(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.rows <= kTileRows) return matmul_stream<Type, kTileRows>(args, begin, end);
  for (std::int64_t row = 0; row < args.rows; row += kChunkRows)
    for (std::int64_t panel = begin; panel < end; panel += kChunkPanels)
      matmul_chunk<Type>(args, {row, smaller(kChunkRows, args.rows - row), panel,
                                smaller(kChunkPanels, end - panel)});
}

inline void matmul(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  switch (args.weight_type) {
    case DType::kF32:
      return matmul_typed<AsF32>(args, begin, end);
    case DType::kF16:
      return matmul_typed<AsF16>(args, begin, end);
    case DType::kBF16:
      return matmul_typed<AsBF16>(args, begin, end);
    case DType::kQ8:
      return matmul_typed<AsQ8>(args, begin, end);
    case DType::kQ4:
      return matmul_typed<AsQ4>(args, begin, end);
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
