// Attention of many rows in float32, for keys and values in float32 (others:
// attention_prefill_tensor.cu): a block takes a tile of 32 queries of one head through the pages of
// keys that any of them sees, with a running maximum and sum for each row (Milakov & Gimelshein
// 2018), so that no more than 32 x 64 scores exist at a time.
//
//   scores   thread (ty, tx) of 8 x 16 has rows 4 ty … + 3, keys 4 tx … + 3
//   output   the same rows, dimensions tx, tx + 16, …
//
// Pages are walked from position 0 (or where the window begins) on, so a row's sums do not depend
// on how the prompt was cut into batches.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/kv_reader.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/span_tiles.h"

namespace stagecoach::cuda {
namespace {

constexpr int kQueries = 32;
constexpr int kRows = 4;                    // of a thread
constexpr int kKeys = 4;                    // of a thread, neighbours
constexpr int kAcross = kPageKeys / kKeys;  // threads that share rows
constexpr int kThreads = kQueries / kRows * kAcross;
constexpr int kKeyDims = 16;    // dimensions of keys, and
constexpr int kValueSlots = 8;  // slots of values, that are in shared memory at a time
constexpr float kMinusInfinity = -__builtin_inff();

constexpr int larger(int a, int b) {
  return a > b ? a : b;
}

template <int kDims>
struct PrefillShared {
  float q[kQueries][kDims];
  float weights[kQueries][kPageKeys];
  float stage[larger(kKeyDims * kPageKeys, kValueSlots* kDims)];
};

// What a block works on.
struct Tile {
  const std::byte *keys, *values;  // of the head, in the current page
  std::int64_t page_key;           // position of the page's first key
  int head_dim;
  int seen_begin, seen_end;  // slots of the page that any row of the tile sees
};

// Over the threads that share rows: halves of a warp.
template <typename Combine>
__device__ float across(float value, Combine combine) {
  for (int step = kAcross / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

template <int kDims>
__device__ void tile_scores(const Tile& tile, PrefillShared<kDims>& shared, int ty, int tx,
                            float (&scores)[kRows][kKeys]) {
  for (int begin = 0; begin < tile.head_dim; begin += kKeyDims) {
    __syncthreads();  // the stage is still being read
    for (int i = static_cast<int>(threadIdx.x); i < kKeyDims * kPageKeys; i += kThreads) {
      const int d = begin + i / kPageKeys, key = i % kPageKeys;
      shared.stage[i] = d < tile.head_dim ? KvReader<float>::key(tile.keys, d, key) : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int d = 0; d < kKeyDims; ++d) {
      const float4 keys = reinterpret_cast<const float4*>(shared.stage + d * kPageKeys)[tx];
      const float key[kKeys] = {keys.x, keys.y, keys.z, keys.w};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float q = shared.q[ty * kRows + r][begin + d];
#pragma unroll
        for (int k = 0; k < kKeys; ++k) scores[r][k] = fmaf(q, key[k], scores[r][k]);
      }
    }
  }
}

// values [+]= weights · values of the page. `checked`: some row does not see some slot, where then
// stands anything.
template <int kDims>
__device__ void add_values(const Tile& tile, PrefillShared<kDims>& shared, int ty, int tx,
                           bool checked, float (&values)[kRows][kDims / kAcross]) {
  for (int begin = tile.seen_begin / kValueSlots * kValueSlots; begin < tile.seen_end;
       begin += kValueSlots) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kValueSlots * kDims; i += kThreads) {
      const int slot = begin + i / kDims, d = i % kDims;
      const bool there = d < tile.head_dim && slot >= tile.seen_begin && slot < tile.seen_end;
      shared.stage[i] = there ? KvReader<float>::value(tile.values, tile.head_dim, slot, d) : 0.0f;
    }
    __syncthreads();
#pragma unroll 2
    for (int s = 0; s < kValueSlots; ++s) {
      float weight[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) weight[r] = shared.weights[ty * kRows + r][begin + s];
#pragma unroll
      for (int j = 0; j < kDims / kAcross; ++j) {
        const float value = shared.stage[s * kDims + tx + kAcross * j];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          if (!checked || weight[r] != 0.0f) values[r][j] = fmaf(weight[r], value, values[r][j]);
      }
    }
  }
}

// grid: x tile of the spans' rows, of each span the last ones first, since they have the most to
// do; y query head.
template <int kDims>
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(AttentionArgs args, const KvSpan* spans, std::int64_t count,
                   std::int64_t head_bytes) {
  const SpanTile at = find_tile(spans, count, blockIdx.x, prefill_tiles<kQueries>);
  if (at.span == nullptr) return;
  const KvSpan& span = *at.span;
  const std::int64_t first = std::int64_t{at.tiles - 1 - at.tile} * kQueries;
  const std::int64_t head = blockIdx.y;
  const std::int64_t kv_head = head / (args.heads / args.kv_heads);
  const int rows = static_cast<int>(span.rows - first < kQueries ? span.rows - first : kQueries);
  const int ty = static_cast<int>(threadIdx.x) / kAcross;
  const int tx = static_cast<int>(threadIdx.x) % kAcross;
  const float slope = args.slopes != nullptr ? args.slopes[head] : 0.0f;
  auto& shared = *shared_memory<PrefillShared<kDims>>();
  Tile tile{.keys = nullptr,
            .values = nullptr,
            .page_key = 0,
            .head_dim = static_cast<int>(args.head_dim),
            .seen_begin = 0,
            .seen_end = 0};

  for (int i = static_cast<int>(threadIdx.x); i < kQueries * kDims; i += kThreads) {
    const int r = i / kDims, d = i % kDims;
    shared.q[r][d] = r < rows && d < tile.head_dim
                         ? args.q[(span.row + first + r) * args.q_stride + head * args.head_dim + d]
                         : 0.0f;
  }
  float max[kRows], sum[kRows] = {}, values[kRows][kDims / kAcross] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) max[r] = kMinusInfinity;

  const std::int64_t tile_begin = visible_keys(span.position + first, args.window).first;
  const std::int64_t tile_end = visible_keys(span.position + first + rows - 1, args.window).end;
  for (std::int64_t page = tile_begin / kPageKeys; page * kPageKeys < tile_end; ++page) {
    tile.page_key = page * kPageKeys;
    tile.keys = span.key_pages[page] + kv_head * head_bytes;
    tile.values = span.value_pages[page] + kv_head * head_bytes;
    tile.seen_begin = static_cast<int>(tile_begin > tile.page_key ? tile_begin - tile.page_key : 0);
    tile.seen_end = static_cast<int>(tile_end - tile.page_key < kPageKeys ? tile_end - tile.page_key
                                                                          : kPageKeys);
    float scores[kRows][kKeys] = {};
    tile_scores<kDims>(tile, shared, ty, tx, scores);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = ty * kRows + r;
      const std::int64_t position = span.position + first + row;
      const Visible seen = visible_keys(position, args.window);
      float largest = kMinusInfinity;
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        const std::int64_t key = tile.page_key + tx * kKeys + k;
        const float score = scores[r][k] * args.scale - slope * static_cast<float>(position - key);
        scores[r][k] = row < rows && key >= seen.first && key < seen.end ? score : kMinusInfinity;
        largest = fmaxf(largest, scores[r][k]);
      }
      largest = fmaxf(max[r], across(largest, [](float a, float b) { return fmaxf(a, b); }));
      // No key so far: weights and what was summed are 0.
      const bool none = largest == kMinusInfinity;
      const float factor = none || max[r] == kMinusInfinity ? 0.0f : expf(max[r] - largest);
      max[r] = largest;
      float weights[kKeys], total = 0.0f;
#pragma unroll
      for (int k = 0; k < kKeys; ++k) {
        weights[k] = scores[r][k] == kMinusInfinity ? 0.0f : expf(scores[r][k] - largest);
        total += weights[k];
      }
      sum[r] = sum[r] * factor + across(total, [](float a, float b) { return a + b; });
#pragma unroll
      for (int j = 0; j < kDims / kAcross; ++j) values[r][j] *= factor;
      // Read by this half of the warp alone, after add_values' first barrier.
      reinterpret_cast<float4*>(shared.weights[row])[tx] =
          make_float4(weights[0], weights[1], weights[2], weights[3]);
    }
    const bool checked =
        tile.page_key + kPageKeys > span.position + first + 1 ||
        (args.window > 0 && tile.page_key + args.window < span.position + first + rows);
    add_values<kDims>(tile, shared, ty, tx, checked, values);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int row = ty * kRows + r;
    if (row >= rows) continue;
    float* const out = args.out + (span.row + first + row) * args.out_stride + head * args.head_dim;
#pragma unroll
    for (int j = 0; j < kDims / kAcross; ++j) {
      const int d = tx + kAcross * j;
      if (d < tile.head_dim) out[d] = values[r][j] / sum[r];
    }
  }
}

struct Prefill {
  const AttentionArgs& args;
  const DeviceSpans& spans;
  cudaStream_t stream;

  template <int kDims>
  void run() const {
    const auto kernel = prefill_kernel<kDims>;
    constexpr std::size_t kBytes = sizeof(PrefillShared<kDims>);
    static_assert(kBytes <= 48 * 1024);
    launch("attention_prefill", kernel,
           {.grid = dim3(tiles_at_most(spans, kQueries), static_cast<unsigned>(args.heads)),
            .threads = kThreads,
            .shared_bytes = kBytes,
            .stream = stream},
           args, spans.spans, spans.count, kv_head_bytes(args.kv_type, args.head_dim));
  }
};

}  // namespace

void attention_prefill(const AttentionArgs& args, const DeviceSpans& spans, cudaStream_t stream) {
  if (spans.largest_rows <= 1) return;
  if (args.kv_type != KvType::kF32) return attention_prefill_tensor(args, spans, stream);
  const Prefill prefill{.args = args, .spans = spans, .stream = stream};
  if (args.head_dim <= 64)
    prefill.run<64>();
  else if (args.head_dim <= 128)
    prefill.run<128>();
  else
    prefill.run<256>();
}

}  // namespace stagecoach::cuda
