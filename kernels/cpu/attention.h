// Causal attention in one pass over the key pages: a tile of query rows against a page at a time,
// with a running maximum and sum per row, so that scores never take more than rows × 64 floats. The
// output rows themselves are the accumulators.
#pragma once

#include "kernels/cpu/tile.h"
#include "kernels/cpu/vec_math.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr std::int64_t kKeys = kKvPageTokens;
constexpr std::int64_t kQueryRows =
    24;  // a multiple of every kTileRows; reads a page once for them all
constexpr float kMinusInfinity = -__builtin_inff();

constexpr std::int64_t at_most(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

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
  float sum[kQueryRows];
};

inline std::int64_t position_of(const QueryTile& t, std::int64_t r) {
  return t.position + r * t.row_step;
}

// Keys of the page, from its first on, that are not beyond row r of the tile.
inline std::int64_t visible_keys(const QueryTile& t, std::int64_t r, std::int64_t page) {
  return at_most(kKeys, position_of(t, r) + 1 - page * kKeys);
}

// Those among them that lie before the row's window; not positive where it begins earlier.
inline std::int64_t outlived_keys(const QueryTile& t, std::int64_t r, std::int64_t page) {
  return t.window > 0 ? position_of(t, r) + 1 - t.window - page * kKeys : 0;
}

// scores (rows from `first`, 64) = q · keys.
inline void score_page(const QueryTile& t, std::int64_t first, const float* keys, float* scores) {
  Tile<AsF32> tile = {t.q, t.q_stride, keys, kKeys, kPanel, t.head_dim, scores, kKeys, false};
  if (t.rows == 1) return run_tile<AsF32, 1, kKeys / kPanel>(tile);
  for (std::int64_t r = first; r < t.rows; r += kTileRows)
    for (std::int64_t key = 0; key < kKeys; key += kTilePanels * kPanel) {
      tile.a = t.q + r * t.q_stride;
      tile.b = keys + key;
      tile.c = scores + r * kKeys + key;
      run_tile_rows<AsF32, kTilePanels, kTileRows>(tile, at_most(kTileRows, t.rows - r));
    }
}

// Turns a row's scores into weights e^(score − max) and rescales what came before. Keys beyond the
// row's position, whatever their memory holds, and before its window weigh exactly 0.
inline void weigh_row(const QueryTile& t, RunningSoftmax& state, std::int64_t r,
                      std::int64_t page) {
  float* const scores = state.scores + r * kKeys;
  const auto visible = static_cast<std::int32_t>(visible_keys(t, r, page));
  const auto outlived = static_cast<std::int32_t>(outlived_keys(t, r, page));
  const auto own = static_cast<std::int32_t>(position_of(t, r) - page * kKeys);
  const float slope = t.slopes != nullptr ? t.slopes[t.row_step == 0 ? r : 0] : 0.0f;
  IntVec lane = {};
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  Vec best = broadcast(kMinusInfinity);
  for (std::int64_t i = 0; i < kKeys; i += kLanes, lane += kLanes) {
    Vec score = load(scores + i) * t.scale;
    if (t.slopes != nullptr) score -= slope * __builtin_convertvector(own - lane, Vec);
    const Vec masked = (lane < visible) & (lane >= outlived) ? score : broadcast(kMinusInfinity);
    best = max(masked, best);
    store(scores + i, masked);
  }
  const float page_max = max_lanes(best);
  const float new_max = page_max > state.max[r] ? page_max : state.max[r];
  Vec sum = {};
  for (std::int64_t i = 0; i < kKeys; i += kLanes) {
    const Vec weight = exp(load(scores + i) - new_max);
    store(scores + i, weight);
    sum += weight;
  }
  float rescale[kLanes];
  store(rescale, exp(broadcast(state.max[r] - new_max)));
  state.max[r] = new_max;
  state.sum[r] = state.sum[r] * rescale[0] + sum_lanes(sum);
  if (rescale[0] == 1.0f) return;  // multiplying by 1 changes no bit
  float* const out = t.out + r * t.out_stride;
  for (std::int64_t d = 0; d < t.head_dim; d += kLanes) {
    const std::int64_t n = t.head_dim - d;
    store_first(out + d, load_first(out + d, n) * rescale[0], n);
  }
}

// out (rows from `first`, P · 16) += weights · values. A tile of rows shares the keys that its
// first row sees; what later rows see beyond goes row by row. Masked keys are never touched: 0 · v
// is no zero when v is not finite, and adding it may turn −0 into +0.
template <int P>
inline void add_values(const QueryTile& t, std::int64_t first, std::int64_t page,
                       Tile<AsF32> tile) {
  const float* const weights = tile.a;
  const float* const values = tile.b;
  float* const out = tile.c;
  const bool load_c = tile.load_c;
  for (std::int64_t r = first; r < t.rows; r += kTileRows) {
    const std::int64_t rows = at_most(kTileRows, t.rows - r);
    const std::int64_t shared = visible_keys(t, r, page);
    tile.a = weights + r * kKeys;
    tile.b = values;
    tile.k = shared;
    tile.c = out + r * tile.c_stride;
    tile.load_c = load_c;
    run_tile_rows<AsF32, P, kTileRows>(tile, rows);
    tile.b = values + shared * tile.b_step;
    tile.load_c = true;
    for (std::int64_t i = 1; i < rows; ++i) {
      tile.k = visible_keys(t, r + i, page) - shared;
      if (tile.k == 0) continue;
      tile.a = weights + (r + i) * kKeys + shared;
      tile.c = out + (r + i) * tile.c_stride;
      run_tile<AsF32, 1, P>(tile);
    }
  }
}

// The last head_dim % 16 dimensions, through padded copies.
inline void add_value_tail(const QueryTile& t, std::int64_t first, std::int64_t page,
                           const float* weights, const float* values) {
  const std::int64_t d = t.head_dim / kPanel * kPanel;
  const std::size_t bytes = static_cast<std::size_t>(t.head_dim - d) * sizeof(float);
  const std::int64_t keys = visible_keys(t, t.rows - 1, page);
  float padded[kKeys * kPanel] = {};
  float sums[kQueryRows * kPanel] = {};
  for (std::int64_t key = 0; key < keys; ++key)
    __builtin_memcpy(padded + key * kPanel, values + key * t.head_dim + d, bytes);
  for (std::int64_t r = first; r < t.rows; ++r)
    __builtin_memcpy(sums + r * kPanel, t.out + r * t.out_stride + d, bytes);
  add_values<1>(t, first, page,
                {weights, kKeys, padded, kPanel, kPanel, 0, sums, kPanel, page > 0});
  for (std::int64_t r = first; r < t.rows; ++r)
    __builtin_memcpy(t.out + r * t.out_stride + d, sums + r * kPanel, bytes);
}

inline void attend_page(const QueryTile& whole, RunningSoftmax& state, std::int64_t page,
                        const float* keys, const float* values) {
  // Rows that lie wholly before the page are done, and those whose window begins after it need not
  // begin.
  std::int64_t first = 0;
  while (visible_keys(whole, first, page) <= 0) ++first;
  QueryTile t = whole;
  while (outlived_keys(t, t.rows - 1, page) >= kKeys) --t.rows;
  score_page(t, first, keys, state.scores);
  for (std::int64_t r = first; r < t.rows; ++r) weigh_row(t, state, r, page);

  const Tile<AsF32> tile = {state.scores, kKeys,        values,  t.head_dim, kPanel, 0,
                            t.out,        t.out_stride, page > 0};
  std::int64_t d = 0;
  const auto advance = [&](Tile<AsF32> at) {
    at.b += d;
    at.c += d;
    return at;
  };
  constexpr std::int64_t kWide = kTilePanels * kPanel;
  for (; d + kWide <= t.head_dim; d += kWide)
    add_values<kTilePanels>(t, first, page, advance(tile));
  for (; d + kPanel <= t.head_dim; d += kPanel) add_values<1>(t, first, page, advance(tile));
  if (d < t.head_dim) add_value_tail(t, first, page, state.scores, values);
}

inline void attend(const QueryTile& t, const KvSpan& span, std::int64_t page_offset) {
  RunningSoftmax state;
  for (std::int64_t r = 0; r < t.rows; ++r) {
    state.max[r] = kMinusInfinity;
    state.sum[r] = 0.0f;
    __builtin_memset(t.out + r * t.out_stride, 0,
                     static_cast<std::size_t>(t.head_dim) * sizeof(float));
  }
  const std::int64_t last_page = position_of(t, t.rows - 1) / kKeys;
  const std::int64_t outlived = outlived_keys(t, 0, 0);
  for (std::int64_t page = outlived > 0 ? outlived / kKeys : 0; page <= last_page; ++page)
    attend_page(t, state, page, span.key_pages[page] + page_offset,
                span.value_pages[page] + page_offset);
  for (std::int64_t r = 0; r < t.rows; ++r)
    for (std::int64_t d = 0; d < t.head_dim; d += kLanes) {
      const std::int64_t n = t.head_dim - d;
      float* const out = t.out + r * t.out_stride + d;
      store_first(out, load_first(out, n) / state.sum[r], n);
    }
}

// Heads [begin, end) of one span, whose first row is q and out.
inline void attend_span(const AttentionArgs& args, const KvSpan& span, std::int64_t begin,
                        std::int64_t end) {
  const std::int64_t group = args.heads / args.kv_heads;
  for (std::int64_t head = begin; head < end;) {
    const std::int64_t page_offset = head / group * args.head_dim * kKeys;
    const float* q = args.q + span.row * args.q_stride + head * args.head_dim;
    float* out = args.out + span.row * args.out_stride + head * args.head_dim;
    const float* slopes = args.slopes != nullptr ? args.slopes + head : nullptr;
    if (span.rows == 1) {
      const std::int64_t heads =
          at_most(kQueryRows, at_most(end, (head / group + 1) * group) - head);
      attend({q, args.head_dim, out, args.head_dim, heads, span.position, 0, args.head_dim,
              args.scale, slopes, args.window},
             span, page_offset);
      head += heads;
      continue;
    }
    for (std::int64_t r = 0; r < span.rows; r += kQueryRows)
      attend({q + r * args.q_stride, args.q_stride, out + r * args.out_stride, args.out_stride,
              at_most(kQueryRows, span.rows - r), span.position + r, 1, args.head_dim, args.scale,
              slopes, args.window},
             span, page_offset);
    ++head;
  }
}

inline void attention(const AttentionArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t s = 0; s < args.num_spans; ++s) attend_span(args, args.spans[s], begin, end);
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
