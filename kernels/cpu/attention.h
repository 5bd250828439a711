// Causal attention in one pass over the key pages: a tile of query rows against a page at a time,
// with a running maximum and sum per row, so that scores never take more than rows × 64 floats. The
// output rows themselves are the accumulators. Keys and values that are not float32 become it in
// registers where few rows read them, and else once for all rows of a tile, a strip of 32
// dimensions (8 KiB, in L1) at a time; neither changes a bit.
#pragma once

#include "kernels/cpu/kv.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// A multiple of every kTileRows. A page is read, and converted, once for so many rows.
constexpr std::int64_t kQueryRows = 48;
constexpr float kMinusInfinity = -__builtin_inff();

// Query rows that read the same kv head: consecutive positions of one head (row_step 1), or the
// heads of a group at one position (row_step 0), which is how a decode step reads its keys once.
struct QueryTile {
  const float* q;
  std::int64_t q_stride;
  float* out;
  std::int64_t out_stride;
  std::int64_t rows, position, row_step;
  std::int64_t head_dim;
  float scale;
  const float*
      slopes;  // of row 0's head, and of the next rows' where those are other heads; or null
  std::int64_t window;  // 0: all keys
};

// What a tile carries from page to page.
struct RunningSoftmax {
  float scores[kQueryRows * kKeys];  // of the current page; then its weights
  float max[kQueryRows];
  Vec sum[kQueryRows];  // lane i: of the weights of keys i, i + kLanes, …
};

inline std::int64_t position_of(const QueryTile& t, std::int64_t r) {
  return t.position + r * t.row_step;
}

// Keys of the page, from its first on, that are not beyond row r of the tile.
inline std::int64_t visible_keys(const QueryTile& t, std::int64_t r, std::int64_t page) {
  return smaller(kKeys, position_of(t, r) + 1 - page * kKeys);
}

// Those among them that lie before the row's window; not positive where it begins earlier.
inline std::int64_t outlived_keys(const QueryTile& t, std::int64_t r, std::int64_t page) {
  return t.window > 0 ? position_of(t, r) + 1 - t.window - page * kKeys : 0;
}

// A row's dimensions in one tile: a wide one, since a single row's sums are chains that wait for
// each other, and since a row of values is read as a whole.
constexpr int kWidePanels = kTileRows * kTilePanels >= 16  ? 8
                            : kTileRows * kTilePanels >= 4 ? 4
                                                           : 2;

// Whether so many rows read the elements of a page where they lie.
template <typename Type>
inline bool reads_in_place(std::int64_t rows) {
  if constexpr (std::is_same_v<Type, AsF32>) return true;
  return !kHasScales<Type> && rows <= kTileRows;
}

// scores (rows from `first`, 64) [+]= q · keys over the dimensions [d, d + dims), of which `keys`
// (dims, 64) are the keys.
template <typename Type>
inline void add_scores(const QueryTile& t, std::int64_t first, std::int64_t d, std::int64_t dims,
                       const typename Type::Element* keys, float* scores) {
  const auto tile_at = [&](std::int64_t r, std::int64_t key) {
    return Tile<Type>{t.q + r * t.q_stride + d, t.q_stride, keys + key, kKeys, kPanel, dims,
                      scores + r * kKeys + key, kKeys,      d > 0};
  };
  if (t.rows - first == 1) return run_tile<Type, 1, kKeys / kPanel>(tile_at(first, 0));
  for_each_tile(t.rows - first, kTileRows, [&](std::int64_t r, std::int64_t rows) {
    for (std::int64_t key = 0; key < kKeys; key += kTilePanels * kPanel)
      run_tile_rows<Type, kTilePanels, kTileRows>(tile_at(first + r, key), rows);
  });
}

template <typename Type>
inline void score_page(const QueryTile& t, std::int64_t first, const std::byte* keys,
                       float* scores) {
  if constexpr (!kHasScales<Type>)
    if (reads_in_place<Type>(t.rows - first))
      return add_scores<Type>(t, first, 0, t.head_dim, elements<Type>(keys, 0), scores);
  if constexpr (kHasScales<Type>)
    if (t.rows - first == 1)
      return score_row(t.q + first * t.q_stride, t.head_dim, keys, scores + first * kKeys);
  alignas(64) float strip[kStripDims * kKeys];
  for (std::int64_t d = 0; d < t.head_dim; d += kStripDims) {
    const std::int64_t dims = smaller(kStripDims, t.head_dim - d);
    expand_keys<Type>(keys, d, dims, strip);
    add_scores<AsF32>(t, first, d, dims, strip, scores);
  }
}

// Scales a row's scores and returns the largest. Keys beyond the row's position, whatever their
// memory holds, and before its window count as −∞ and will weigh exactly 0.
inline float mask_row(const QueryTile& t, float* scores, std::int64_t r, std::int64_t page) {
  const auto visible = static_cast<std::int32_t>(visible_keys(t, r, page));
  const auto outlived = static_cast<std::int32_t>(outlived_keys(t, r, page));
  Vec best = broadcast(kMinusInfinity);
  if (visible == kKeys && outlived <= 0 && t.slopes == nullptr) {
    for (std::int64_t i = 0; i < kKeys; i += kLanes) {
      const Vec score = load(scores + i) * t.scale;
      best = max(score, best);
      store(scores + i, score);
    }
    return max_lanes(best);
  }
  const auto own = static_cast<std::int32_t>(position_of(t, r) - page * kKeys);
  const float slope = t.slopes != nullptr ? t.slopes[t.row_step == 0 ? r : 0] : 0.0f;
  IntVec lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (std::int64_t i = 0; i < kKeys; i += kLanes, lane += kLanes) {
    Vec score = load(scores + i) * t.scale;
    if (t.slopes != nullptr) score -= slope * __builtin_convertvector(own - lane, Vec);
    const Vec masked = (lane < visible) & (lane >= outlived) ? score : broadcast(kMinusInfinity);
    best = max(masked, best);
    store(scores + i, masked);
  }
  return max_lanes(best);
}

// A larger maximum makes less of what came before.
inline void raise_max(const QueryTile& t, RunningSoftmax& state, std::int64_t r, float new_max) {
  const float old_max = state.max[r];
  state.max[r] = new_max;
  if (old_max == kMinusInfinity) return;  // nothing came before
  const float rescale = exp(broadcast(old_max - new_max))[0];
  state.sum[r] *= rescale;
  float* const out = t.out + r * t.out_stride;
  for (std::int64_t d = 0; d < t.head_dim; d += kLanes) {
    const std::int64_t n = t.head_dim - d;
    store_first(out + d, load_first(out + d, n) * rescale, n);
  }
}

// Turns the rows' scores into weights e^(score − max).
inline void weigh_page(const QueryTile& t, RunningSoftmax& state, std::int64_t first,
                       std::int64_t page) {
  float page_max[kQueryRows];
  for (std::int64_t r = first; r < t.rows; ++r)
    page_max[r] = mask_row(t, state.scores + r * kKeys, r, page);
  for (std::int64_t r = first; r < t.rows; ++r) {
    if (page_max[r] > state.max[r]) raise_max(t, state, r, page_max[r]);
    float* const scores = state.scores + r * kKeys;
    const float max = state.max[r];
    Vec sum = state.sum[r];
    for (std::int64_t i = 0; i < kKeys; i += kLanes) {
      const Vec weight = exp(load(scores + i) - max);
      store(scores + i, weight);
      sum += weight;
    }
    state.sum[r] = sum;
  }
}

// out (rows from `first`, P · 16) += weights · values. A tile of rows shares the keys that its
// first row sees; what later rows see beyond goes row by row. Masked keys are never touched: 0 · v
// is no zero when v is not finite, and adding it may turn −0 into +0.
template <typename Type, int P>
inline void add_values(const QueryTile& t, std::int64_t first, std::int64_t page,
                       const Tile<Type>& whole) {
  for_each_tile(t.rows - first, kTileRows, [&](std::int64_t row, std::int64_t rows) {
    const std::int64_t r = first + row;
    const std::int64_t shared = visible_keys(t, r, page);
    Tile<Type> tile = whole;
    tile.a += r * kKeys;
    tile.c += r * tile.c_stride;
    tile.k = shared;
    run_tile_rows<Type, P, P <= kTilePanels ? kTileRows : 1>(tile, rows);
    tile.a += shared;
    tile.b += shared * tile.b_step;
    tile.load_c = true;
    for (std::int64_t i = 1; i < rows; ++i) {
      tile.a += kKeys;
      tile.c += tile.c_stride;
      tile.k = visible_keys(t, r + i, page) - shared;
      if (tile.k > 0) run_tile<Type, 1, P>(tile);
    }
  });
}

// As many panels at once as P allows, from column `i` on; then fewer.
template <typename Type, int P>
inline std::int64_t add_panels(const QueryTile& t, std::int64_t first, std::int64_t page,
                               const Tile<Type>& tile, std::int64_t columns, std::int64_t i) {
  for (; i + P * kPanel <= columns; i += P * kPanel) {
    Tile<Type> at = tile;
    at.b += i;
    at.c += i;
    add_values<Type, P>(t, first, page, at);
  }
  if constexpr (P > 1) return add_panels<Type, P / 2>(t, first, page, tile, columns, i);
  return i;
}

// The last dims % 16 columns of a strip, which has zeros beyond: through padded copies of out.
inline void add_value_tail(const QueryTile& t, std::int64_t first, std::int64_t page,
                           Tile<AsF32> tile, std::int64_t columns) {
  const std::size_t bytes = static_cast<std::size_t>(columns) * sizeof(float);
  float sums[kQueryRows * kPanel] = {};
  for (std::int64_t r = first; r < t.rows; ++r)
    __builtin_memcpy(sums + r * kPanel, tile.c + r * tile.c_stride, bytes);
  float* const out = tile.c;
  tile.c = sums;
  const std::int64_t out_stride = tile.c_stride;
  tile.c_stride = kPanel;
  add_values<AsF32, 1>(t, first, page, tile);
  for (std::int64_t r = first; r < t.rows; ++r)
    __builtin_memcpy(out + r * out_stride, sums + r * kPanel, bytes);
}

// Whole panels of `columns`, from the tile's first on. Returns how many columns that are.
template <typename Type>
inline std::int64_t add_whole_panels(const QueryTile& t, std::int64_t first, std::int64_t page,
                                     const Tile<Type>& tile, std::int64_t columns) {
  if (t.rows - first == 1) return add_panels<Type, kWidePanels>(t, first, page, tile, columns, 0);
  return add_panels<Type, kTilePanels>(t, first, page, tile, columns, 0);
}

template <typename Type>
inline void add_page(const QueryTile& t, std::int64_t first, std::int64_t page,
                     const float* weights, const std::byte* values) {
  std::int64_t d = 0;
  if constexpr (!kHasScales<Type>)
    if (reads_in_place<Type>(t.rows - first))
      d = add_whole_panels<Type>(t, first, page,
                                 {weights, kKeys, elements<Type>(values, 0), t.head_dim, kPanel, 0,
                                  t.out, t.out_stride, page > 0},
                                 t.head_dim);
  const std::int64_t keys = visible_keys(t, t.rows - 1, page);
  if constexpr (kHasScales<Type>)
    if (t.rows - first == 1)
      d = add_row_values(weights + first * kKeys, keys, t.head_dim, values,
                         t.out + first * t.out_stride);
  alignas(64) float strip[kKeys * kStripDims];
  for (; d < t.head_dim; d += kStripDims) {
    const std::int64_t dims = smaller(kStripDims, t.head_dim - d);
    expand_values<Type>(values, t.head_dim, d, dims, keys, strip);
    Tile<AsF32> tile = {weights, kKeys,     strip,        kStripDims, kPanel,
                        0,       t.out + d, t.out_stride, page > 0};
    const std::int64_t done = add_whole_panels<AsF32>(t, first, page, tile, dims);
    if (done == dims) continue;
    tile.b += done;
    tile.c += done;
    add_value_tail(t, first, page, tile, dims - done);
  }
}

template <typename Type>
inline void attend_page(const QueryTile& whole, RunningSoftmax& state, std::int64_t page,
                        const std::byte* keys, const std::byte* values) {
  // Rows that lie wholly before the page are done, and those whose window begins after it need not
  // begin.
  std::int64_t first = 0;
  while (visible_keys(whole, first, page) <= 0) ++first;
  QueryTile t = whole;
  while (outlived_keys(t, t.rows - 1, page) >= kKeys) --t.rows;
  score_page<Type>(t, first, keys, state.scores);
  weigh_page(t, state, first, page);
  add_page<Type>(t, first, page, state.scores, values);
}

template <typename Type>
inline void attend(const QueryTile& t, const KvSpan& span, std::int64_t page_offset) {
  RunningSoftmax state;
  for (std::int64_t r = 0; r < t.rows; ++r) {
    state.max[r] = kMinusInfinity;
    state.sum[r] = Vec{};
    __builtin_memset(t.out + r * t.out_stride, 0,
                     static_cast<std::size_t>(t.head_dim) * sizeof(float));
  }
  const std::int64_t last_page = position_of(t, t.rows - 1) / kKeys;
  const std::int64_t outlived = outlived_keys(t, 0, 0);
  for (std::int64_t page = outlived > 0 ? outlived / kKeys : 0; page <= last_page; ++page)
    attend_page<Type>(t, state, page, span.key_pages[page] + page_offset,
                      span.value_pages[page] + page_offset);
  for (std::int64_t r = 0; r < t.rows; ++r) {
    const float sum = sum_lanes(state.sum[r]);
    for (std::int64_t d = 0; d < t.head_dim; d += kLanes) {
      const std::int64_t n = t.head_dim - d;
      float* const out = t.out + r * t.out_stride + d;
      store_first(out, load_first(out, n) / sum, n);
    }
  }
}

// Heads [begin, end) of one span, whose first row is q and out.
template <typename Type>
inline void attend_span(const AttentionArgs& args, const KvSpan& span, std::int64_t begin,
                        std::int64_t end) {
  const std::int64_t group = args.heads / args.kv_heads;
  for (std::int64_t head = begin; head < end;) {
    const std::int64_t page_offset = head / group * kv_head_bytes(args.kv_type, args.head_dim);
    const float* q = args.q + span.row * args.q_stride + head * args.head_dim;
    float* out = args.out + span.row * args.out_stride + head * args.head_dim;
    const float* slopes = args.slopes != nullptr ? args.slopes + head : nullptr;
    if (span.rows == 1) {
      const std::int64_t heads =
          smaller(kQueryRows, smaller(end, (head / group + 1) * group) - head);
      attend<Type>({q, args.head_dim, out, args.head_dim, heads, span.position, 0, args.head_dim,
                    args.scale, slopes, args.window},
                   span, page_offset);
      head += heads;
      continue;
    }
    for (std::int64_t r = 0; r < span.rows; r += kQueryRows)
      attend<Type>({q + r * args.q_stride, args.q_stride, out + r * args.out_stride,
                    args.out_stride, smaller(kQueryRows, span.rows - r), span.position + r, 1,
                    args.head_dim, args.scale, slopes, args.window},
                   span, page_offset);
    ++head;
  }
}

template <typename Type>
inline void attention_typed(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t s = 0; s < args.num_spans; ++s)
    attend_span<Type>(args, args.spans[s], begin, end);
}

inline void attention(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  switch (args.kv_type) {
    case KvType::kF32:
      return attention_typed<AsF32>(args, begin, end);
    case KvType::kF16:
      return attention_typed<AsF16>(args, begin, end);
    case KvType::kQ8:
      return attention_typed<AsKvQ8>(args, begin, end);
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
