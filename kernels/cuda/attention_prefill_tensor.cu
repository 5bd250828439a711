// Attention of many rows on tensor cores, as FlashAttention-2 does it (Dao 2023): a block takes a
// tile of 64 queries of one head through the keys that any of them sees, 16 queries to a warp, with
// a running maximum and sum for each row. Queries, keys, values and the weights of softmax are
// halves; scores, maxima and all sums are float32.
//
//   scores (16, keys)    = queries (16, dims) · keys (dims, keys), which pages hold transposed
//   output (16, dims)   += weights (16, keys) · values (keys, dims)
//
// Keys and values of a step take turns: values are on their way while scores are computed, the next
// keys while values are added.
//
// Steps begin at multiples of their keys from position 0 on, and one that a row sees nothing of
// leaves its sums as they are: a row's bits do not depend on how the prompt was cut into batches,
// but for a piece of one row, which is attended to as decode does it.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/kv_reader.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/span_tiles.h"

namespace stagecoach::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kWarpRows = 16;
constexpr int kQueries = kWarps * kWarpRows;
constexpr int kThreads = kWarps * kWarp;
constexpr int kStep = 16;    // of a product's inner dimension
constexpr int kChunk = 8;    // halves of 16 bytes
constexpr int kColumns = 8;  // of a MatrixC
constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2E = 1.4426950408889634f;
// A row's largest weight is 2¹⁰ before it is divided by their sum, so that as halves the others
// keep their 11 bits down to 2⁻²⁴ of it.
constexpr float kLargestWeight = 10.0f;

// 16-byte chunks in rows, permuted so that no two of 8 rows that ldmatrix reads in one column of
// chunks share a bank.
template <int kRows, int kChunks>
struct SharedTile {
  uint4 chunks[kRows * kChunks];

  __device__ uint4* at(int row, int chunk) {
    constexpr int kLine = 8;  // chunks in all banks
    constexpr int kRowsOfLine = kChunks < kLine ? kLine / kChunks : 1;
    constexpr int kPermuted = kChunks < kLine ? kChunks : kLine;
    return chunks + row * kChunks + (chunk ^ (row / kRowsOfLine % kPermuted));
  }
};

// Heads of up to kDims dimensions.
template <int kDims>
struct Sizes {
  static constexpr int kKeys = kDims > 128 ? 32 : 64;  // of a step
  static constexpr int kSteps = kDims / kStep;
  // In registers; else each lane has its own in shared memory.
  static constexpr bool kKeepsQueries = kDims <= 128;
};

// A base, since an empty one takes no room.
template <int kDims, bool kKeepsQueries = Sizes<kDims>::kKeepsQueries>
struct SharedQueries {};
template <int kDims>
struct SharedQueries<kDims, false> {
  MatrixA queries[Sizes<kDims>::kSteps * kThreads];
};

template <int kDims>
struct TensorShared : SharedQueries<kDims> {
  SharedTile<kDims, Sizes<kDims>::kKeys / kChunk> keys;
  SharedTile<Sizes<kDims>::kKeys, kDims / kChunk> values;
};

// Keys of one page that a step works on.
struct Block {
  const std::byte *keys, *values;  // of the head, in its page
  int slot;                        // of the first key
};

__device__ std::uint32_t saturated_pair(float low, float high) {
  return half_bits(from_float<__half>(low)) | half_bits(from_float<__half>(high)) << 16;
}

// Eight neighbours of a page as halves, to `to` in shared memory; zeros if not `there`. A thread
// that waits for what it loads has kAhead loads under way; copies need no registers to be so.
template <typename T>
struct ChunkReader;

template <>
struct ChunkReader<__half> {
  static constexpr int kAhead = kCopiesAreAsynchronous ? 1 : 4;
  static __device__ void keys(uint4* to, const std::byte* head, int d, int key, bool there) {
    copy_async(to, head + (there ? d * kPageKeys + key : 0) * 2, there);
  }
  // head_dim is a multiple of 8.
  static __device__ void values(uint4* to, const std::byte* head, int head_dim, int slot, int d,
                                bool there) {
    copy_async(to, head + (there ? slot * head_dim + d : 0) * 2, there);
  }
};

template <>
struct ChunkReader<Q8Kv> {
  static constexpr int kAhead = 4;
  static __device__ void keys(uint4* to, const std::byte* head, int d, int key, bool there) {
    float run[kChunk];
    KvReader<Q8Kv>::keys(head, d, key, {head, d, key}, there, run);
    *to = halves(run);
  }
  static __device__ void values(uint4* to, const std::byte* head, int head_dim, int slot, int d,
                                bool there) {
    float run[kChunk];
    KvReader<Q8Kv>::values(head, head_dim, slot, d, there, run);
    *to = halves(run);
  }

 private:
  static __device__ uint4 halves(const float (&run)[kChunk]) {
    return {saturated_pair(run[0], run[1]), saturated_pair(run[2], run[3]),
            saturated_pair(run[4], run[5]), saturated_pair(run[6], run[7])};
  }
};
static_assert(kChunk == kRun);

__device__ int padded(int head_dim) {
  return (head_dim + kStep - 1) / kStep * kStep;
}

// Dimensions from head_dim up to a whole product are zero.
template <typename T, int kDims>
__device__ void load_keys(const Block& block, int head_dim, TensorShared<kDims>& shared) {
  constexpr int kChunks = Sizes<kDims>::kKeys / kChunk;
  [[maybe_unused]] constexpr int kAhead = ChunkReader<T>::kAhead;
#pragma unroll(kAhead)
  for (int i = static_cast<int>(threadIdx.x); i < padded(head_dim) * kChunks; i += kThreads) {
    const int d = i / kChunks, chunk = i % kChunks;
    ChunkReader<T>::keys(shared.keys.at(d, chunk), block.keys, d, block.slot + chunk * kChunk,
                         d < head_dim);
  }
}

template <typename T, int kDims>
__device__ void load_values(const Block& block, int head_dim, TensorShared<kDims>& shared) {
  constexpr int kChunks = kDims / kChunk;
  [[maybe_unused]] constexpr int kAhead = ChunkReader<T>::kAhead;
#pragma unroll(kAhead)
  for (int i = static_cast<int>(threadIdx.x); i < Sizes<kDims>::kKeys * kChunks; i += kThreads) {
    const int key = i / kChunks, d = i % kChunks * kChunk;
    if (d >= padded(head_dim)) continue;
    uint4* const to = shared.values.at(key, d / kChunk);
    if (head_dim % kChunk == 0) {
      ChunkReader<T>::values(to, block.values, head_dim, block.slot + key, d, d < head_dim);
      continue;
    }
    // Rows of a page that begin anywhere.
    __half* const halves = reinterpret_cast<__half*>(to);
    for (int j = 0; j < kChunk; ++j)
      halves[j] = from_float<__half>(
          d + j < head_dim ? KvReader<T>::value(block.values, head_dim, block.slot + key, d + j)
                           : 0.0f);
  }
}

__device__ bool holds_infinity_or_nan(std::uint32_t pair) {
  constexpr std::uint32_t kLow = 0x7c00u, kHigh = kLow << 16;
  return (pair & kLow) == kLow || (pair & kHigh) == kHigh;
}

// c += a · b, and NaN where an infinity or NaN of b has a weight: an mma would let it reach rows
// that do not see it, since 0 · ∞ is NaN; and in slots that no row sees yet stands anything.
__device__ void multiply_add_seen(const MatrixA& a, const MatrixB& b, MatrixC& c) {
  MatrixB finite{}, others{};
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int shift = 0; shift < 32; shift += 16) {
      const std::uint32_t half = b.pair[i] >> shift & 0xffffu;
      constexpr std::uint32_t kOne = 0x3c00u;
      const bool other = holds_infinity_or_nan(half);
      finite.pair[i] |= (other ? 0 : half) << shift;
      others.pair[i] |= (other ? kOne : 0) << shift;
    }
  MatrixC weights{};
  multiply_add<__half>(a, finite, c);
  multiply_add<__half>(a, others, weights);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (weights.value[i] != 0.0f) c.value[i] = __int_as_float(0x7fc00000);
}

// A warp's 16 rows; a lane has two of them, r = 0 and 1: lane / 4 and lane / 4 + 8.
template <int kDims>
struct WarpRows {
  static constexpr int kKeys = Sizes<kDims>::kKeys;

  float max[2] = {kMinusInfinity, kMinusInfinity};
  float sum[2] = {};  // of the lane's own columns
  MatrixC values[kDims / kColumns] = {};

  template <typename Queries>
  __device__ void scores(const Queries& queries, TensorShared<kDims>& shared, int head_dim,
                         MatrixC (&scores)[kKeys / kColumns]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int step = 0; step < Sizes<kDims>::kSteps; ++step) {
      if (step * kStep >= head_dim) break;
      const MatrixA query = queries(step);
#pragma unroll
      for (int tile = 0; tile < kKeys / kColumns; tile += 2) {
        std::uint32_t pairs[4];
        load_matrices<true>(pairs, shared.keys.at(step * kStep + lane % 16, tile + lane / 16));
        multiply_add<__half>(query, {pairs[0], pairs[1]}, scores[tile]);
        multiply_add<__half>(query, {pairs[2], pairs[3]}, scores[tile + 1]);
      }
    }
  }

  // Scores, in units of log 2, become weights; what was summed shrinks as maxima grow.
  __device__ void soften(MatrixC (&scores)[kKeys / kColumns], MatrixA (&weights)[kKeys / kStep]) {
    float base[2], factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float largest = max[r];
#pragma unroll
      for (int tile = 0; tile < kKeys / kColumns; ++tile)
        largest = fmaxf(largest, fmaxf(scores[tile].value[2 * r], scores[tile].value[2 * r + 1]));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, 2));
      // No key so far: weights and what was summed are 0.
      base[r] = largest == kMinusInfinity ? 0.0f : largest - kLargestWeight;
      factor[r] = exp2f(max[r] - (largest == kMinusInfinity ? 0.0f : largest));
      max[r] = largest;
      sum[r] *= factor[r];
    }
#pragma unroll
    for (int tile = 0; tile < kKeys / kColumns; ++tile)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const __half low = __float2half_rn(exp2f(scores[tile].value[2 * r] - base[r]));
        const __half high = __float2half_rn(exp2f(scores[tile].value[2 * r + 1] - base[r]));
        // As they are multiplied, so that they add up to one.
        sum[r] += __half2float(low) + __half2float(high);
        weights[tile / 2].pair[tile % 2 * 2 + r] = half_bits(low) | half_bits(high) << 16;
      }
#pragma unroll
    for (MatrixC& value : values)
#pragma unroll
      for (int i = 0; i < 4; ++i) value.value[i] *= factor[i / 2];
  }

  // `checked`: some row does not see some key.
  __device__ void add_values(const MatrixA (&weights)[kKeys / kStep], TensorShared<kDims>& shared,
                             int head_dim, bool checked) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int step = 0; step < kKeys / kStep; ++step)
#pragma unroll
      for (int tile = 0; tile < kDims / kColumns; tile += 2) {
        if (tile * kColumns >= head_dim) break;
        std::uint32_t pairs[4];
        load_matrices<true>(pairs, shared.values.at(step * kStep + lane % 16, tile + lane / 16));
        const MatrixB low{pairs[0], pairs[1]}, high{pairs[2], pairs[3]};
        bool seen_only = true;
        if (checked) {
          bool others = false;
#pragma unroll
          for (const std::uint32_t pair : pairs) others = others || holds_infinity_or_nan(pair);
          seen_only = !__any_sync(kAllLanes, others);
        }
        if (seen_only) {
          multiply_add<__half>(weights[step], low, values[tile]);
          multiply_add<__half>(weights[step], high, values[tile + 1]);
        } else {
          multiply_add_seen(weights[step], low, values[tile]);
          multiply_add_seen(weights[step], high, values[tile + 1]);
        }
      }
  }
};

// Of a multiprocessor, at least.
template <int kDims>
constexpr int kBlocks = Sizes<kDims>::kKeepsQueries ? 2 : 1;

// grid: x tile of the spans' rows, of each span the last ones first, since they have the most to
// do; y query head.
template <typename T, int kDims>
__global__ void __launch_bounds__(kThreads, kBlocks<kDims>)
    prefill_tensor_kernel(AttentionArgs args, const KvSpan* spans, std::int64_t count,
                          std::int64_t head_bytes) {
  constexpr int kKeys = Sizes<kDims>::kKeys;
  const SpanTile at = find_tile(spans, count, blockIdx.x, prefill_tiles<kQueries>);
  if (at.span == nullptr) return;
  const KvSpan& span = *at.span;
  const std::int64_t first = std::int64_t{at.tiles - 1 - at.tile} * kQueries;
  const std::int64_t head = blockIdx.y;
  const std::int64_t kv_head = head / (args.heads / args.kv_heads);
  const int head_dim = static_cast<int>(args.head_dim);
  const int rows = static_cast<int>(span.rows - first < kQueries ? span.rows - first : kQueries);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * kWarpRows;
  const float scale = args.scale * kLog2E;
  const float slope = args.slopes != nullptr ? args.slopes[head] * kLog2E : 0.0f;
  auto& shared = *shared_memory<TensorShared<kDims>>();

  // A lane's part of the queries' dimensions 16 step … + 15.
  const auto query = [&](int step) {
    MatrixA a;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp_row + lane / 4 + i % 2 * 8;
      const int d = step * kStep + lane % 4 * 2 + i / 2 * 8;
      const float* const q =
          args.q + (span.row + first + row) * args.q_stride + head * args.head_dim + d;
      a.pair[i] = saturated_pair(row < rows && d < head_dim ? q[0] : 0.0f,
                                 row < rows && d + 1 < head_dim ? q[1] : 0.0f);
    }
    return a;
  };
  MatrixA kept[Sizes<kDims>::kKeepsQueries ? Sizes<kDims>::kSteps : 1];
#pragma unroll
  for (int step = 0; step < Sizes<kDims>::kSteps; ++step)
    if constexpr (Sizes<kDims>::kKeepsQueries)
      kept[step] = query(step);
    else
      shared.queries[step * kThreads + threadIdx.x] = query(step);
  const auto queries = [&](int step) -> const MatrixA& {
    if constexpr (Sizes<kDims>::kKeepsQueries)
      return kept[step];
    else
      return shared.queries[step * kThreads + threadIdx.x];
  };

  // Of the tile's first row, and of the keys that the tile and this warp see.
  const int origin = static_cast<int>(span.position + first);
  const auto seen_from = [&](int row) {
    return static_cast<int>(visible_keys(origin + row, args.window).first);
  };
  const int begin = seen_from(0), end = origin + rows;
  const int warp_begin = seen_from(warp_row), warp_end = origin + warp_row + kWarpRows;
  constexpr int kAll = 0x7fffffff;
  const int window = args.window > 0 && args.window < kAll ? static_cast<int>(args.window) : kAll;
  const auto block_of = [&](int key) {
    const int page = key / kPageKeys;
    return Block{.keys = span.key_pages[page] + kv_head * head_bytes,
                 .values = span.value_pages[page] + kv_head * head_bytes,
                 .slot = key % kPageKeys};
  };
  WarpRows<kDims> own_rows;
  Block block = block_of(begin / kKeys * kKeys);
  load_keys<T, kDims>(block, head_dim, shared);
  end_copies();
  for (int key = begin / kKeys * kKeys; key < end; key += kKeys) {
    wait_for_copies<0>();
    __syncthreads();  // the keys are there, values are no longer read
    load_values<T, kDims>(block, head_dim, shared);
    end_copies();
    const bool any = warp_row < rows && key < warp_end && key + kKeys > warp_begin;
    // Some row does not see some key.
    const bool checked = key + kKeys > origin + warp_row + 1 || warp_end - 1 - key >= window;
    MatrixA weights[kKeys / kStep];
    if (any) {
      MatrixC scores[kKeys / kColumns] = {};
      own_rows.scores(queries, shared, head_dim, scores);
#pragma unroll
      for (int tile = 0; tile < kKeys / kColumns; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int distance = origin - key + warp_row + lane / 4 + i / 2 * 8 -
                               (tile * kColumns + lane % 4 * 2 + i % 2);
          float& score = scores[tile].value[i];
          score = score * scale - slope * static_cast<float>(distance);
          // A key behind its query is far as an unsigned number.
          if (checked && static_cast<unsigned>(distance) >= static_cast<unsigned>(window))
            score = kMinusInfinity;
        }
      own_rows.soften(scores, weights);
    }
    wait_for_copies<0>();
    __syncthreads();  // the values are there, keys are no longer read
    if (key + kKeys < end) {
      block = block_of(key + kKeys);
      load_keys<T, kDims>(block, head_dim, shared);
    }
    end_copies();
    if (any) own_rows.add_values(weights, shared, head_dim, checked);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = own_rows.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    const int row = warp_row + lane / 4 + r * 8;
    if (row >= rows) continue;
    float* const out = args.out + (span.row + first + row) * args.out_stride + head * args.head_dim;
#pragma unroll
    for (int tile = 0; tile < kDims / kColumns; ++tile)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int d = tile * kColumns + lane % 4 * 2 + i;
        if (d < head_dim) out[d] = own_rows.values[tile].value[2 * r + i] / sum;
      }
  }
}

struct Prefill {
  const AttentionArgs& args;
  const DeviceSpans& spans;
  cudaStream_t stream;

  template <typename T, int kDims>
  void run() const {
    // As many blocks as __launch_bounds__ says fit into what compute capability 7.5 has.
    static_assert(kBlocks<kDims> * sizeof(TensorShared<kDims>) <= 64 * 1024);
    launch("attention_prefill", prefill_tensor_kernel<T, kDims>,
           {.grid = dim3(tiles_at_most(spans, kQueries), static_cast<unsigned>(args.heads)),
            .threads = kThreads,
            .shared_bytes = sizeof(TensorShared<kDims>),
            .stream = stream},
           args, spans.spans, spans.count, kv_head_bytes(args.kv_type, args.head_dim));
  }
  template <typename T>
  void of_type() const {
    if (args.head_dim <= 64)
      run<T, 64>();
    else if (args.head_dim <= 128)
      run<T, 128>();
    else
      run<T, 256>();
  }
};

}  // namespace

void attention_prefill_tensor(const AttentionArgs& args, const DeviceSpans& spans,
                              cudaStream_t stream) {
  const Prefill prefill{.args = args, .spans = spans, .stream = stream};
  if (args.kv_type == KvType::kF16)
    prefill.of_type<__half>();
  else
    prefill.of_type<Q8Kv>();
}

}  // namespace stagecoach::cuda
