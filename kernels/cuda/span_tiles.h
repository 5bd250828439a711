// Which rows a block has where all spans share one dimension of the grid, in tiles of a span's
// rows. A grid of spans by the tiles of the largest one would have a million blocks with nothing to
// do where a prompt of 1,000 rows comes along with sequences that decode one.
#pragma once

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.h"

namespace stagecoach::cuda {

// Blocks that are enough, whatever rows the spans have: at most `count` too many. They depend on
// what a recorded step's spans have in common.
constexpr unsigned tiles_at_most(const DeviceSpans& spans, std::int64_t tile_rows) {
  return static_cast<unsigned>((spans.rows + spans.count * (tile_rows - 1)) / tile_rows);
}

// One of a span's tiles; none: span is null.
struct SpanTile {
  const KvSpan* span;
  int tile, tiles;
};

// Of prefill, of so many rows each: spans of one row are attended to as in decode.
template <int kRows>
__device__ int prefill_tiles(const KvSpan& span) {
  return span.rows == 1 ? 0 : static_cast<int>((span.rows + kRows - 1) / kRows);
}

// Tile number `tile` of all spans in order; tiles_of(span) says how many one has. All lanes of a
// warp call together, each for a span.
template <typename TilesOf>
__device__ SpanTile find_tile(const KvSpan* spans, std::int64_t count, unsigned tile,
                              const TilesOf& tiles_of) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  int left = static_cast<int>(tile);
  for (std::int64_t first = 0; first < count; first += kWarp) {
    const int tiles = first + lane < count ? tiles_of(spans[first + lane]) : 0;
    int end = tiles;  // of the span's tiles, after those of the lanes before
#pragma unroll
    for (int step = 1; step < kWarp; step *= 2) {
      const int before = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += before;
    }
    const unsigned behind = __ballot_sync(kAllLanes, left < end);
    if (behind != 0) {
      const int found = __ffs(static_cast<int>(behind)) - 1;
      const int found_tiles = __shfl_sync(kAllLanes, tiles, found);
      const int begin = __shfl_sync(kAllLanes, end, found) - found_tiles;
      return {.span = spans + first + found, .tile = left - begin, .tiles = found_tiles};
    }
    left -= __shfl_sync(kAllLanes, end, kWarp - 1);
  }
  return {.span = nullptr, .tile = 0, .tiles = 0};
}

}  // namespace stagecoach::cuda
