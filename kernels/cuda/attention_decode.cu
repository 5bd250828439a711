// Attention of decode steps: one row of queries for each sequence against all its keys, as fast as
// they can be read.
//
//   grid    (split of the keys, kv head and tile of its query heads, span)
//   block   kWarps warps; each takes one page of the split, 64 keys
//   lane    keys `lane` and `lane + 32` of a page's scores; dimensions lane, lane + 32, … of values
//
// A split is always the same 256 positions, so a row's sums do not depend on its batch-mates.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/kv_reader.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace stagecoach::cuda {
namespace {

constexpr int kWarps = static_cast<int>(kSplitPages);
constexpr int kKeysOfLane = kPageKeys / kWarp;
constexpr float kMinusInfinity = -__builtin_inff();

// What a warp found over its pages, for one query head: softmax is Σ weight · value ÷ Σ weight with
// weights exp(score − max).
template <int kDims>
struct Found {
  float max, sum;
  float values[kDims];
};

template <int kDims, int kHeads>
struct DecodeShared {
  float q[kHeads][kDims];
  float weights[kWarps][kHeads][kPageKeys];
  Found<kDims> found[kWarps][kHeads];
};

// In scratch, of each (span, query head, split): max, sum, values[head_dim]. Nothing is there for
// splits that the row does not have, or no longer sees.
__device__ float* scratch_of(float* scratch, const AttentionArgs& args, std::int64_t span,
                             std::int64_t head, std::int64_t split, std::int64_t splits) {
  return scratch + ((span * args.heads + head) * splits + split) * (args.head_dim + 2);
}

// The factor of what was summed below another maximum.
__device__ float rescale(float old_max, float new_max) {
  return old_max == kMinusInfinity ? 0.0f : expf(old_max - new_max);
}

// Scores of a page's keys for all query heads of the tile: keys lane + 32 i.
template <typename T, int kDims, int kHeads>
__device__ void page_scores(const std::byte* keys, int head_dim,
                            const DecodeShared<kDims, kHeads>& shared, int lane,
                            float (&scores)[kHeads][kKeysOfLane]) {
  for (int begin = 0; begin < head_dim; begin += kGroupDims) {
    const int end = head_dim < begin + kGroupDims ? head_dim : begin + kGroupDims;
    float sums[kHeads][kKeysOfLane] = {};
#pragma unroll 16
    for (int d = begin; d < end; ++d)
#pragma unroll
      for (int i = 0; i < kKeysOfLane; ++i) {
        const float key = KvReader<T>::key(keys, d, lane + kWarp * i);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) sums[h][i] = fmaf(shared.q[h][d], key, sums[h][i]);
      }
#pragma unroll
    for (int i = 0; i < kKeysOfLane; ++i) {
      const float scale = KvReader<T>::key_scale(keys, begin, lane + kWarp * i);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) scores[h][i] = fmaf(sums[h][i], scale, scores[h][i]);
    }
  }
}

template <typename T, int kDims, int kHeads>
// Six blocks a multiprocessor, so that the compiler does not trade loads under way for registers.
__global__ void __launch_bounds__(kWarps* kWarp, kHeads == 1 && kDims <= 128 ? 6 : 1)
    decode_kernel(AttentionArgs args, const KvSpan* spans, float* scratch, std::int64_t splits,
                  std::int64_t head_bytes) {
  constexpr int kDimsOfLane = kDims / kWarp;
  const KvSpan& span = spans[blockIdx.z];
  if (span.rows != 1) return;
  const Visible seen = visible_keys(span.position, args.window);
  const std::int64_t split = blockIdx.x;
  // Splits that this row does not have, or no longer sees.
  if (split * kSplitKeys >= seen.end || (split + 1) * kSplitKeys <= seen.first) return;
  const std::int64_t group = args.heads / args.kv_heads;
  const std::int64_t tiles = (group + kHeads - 1) / kHeads;
  const std::int64_t kv_head = blockIdx.y / tiles;
  const std::int64_t first_head = kv_head * group + blockIdx.y % tiles * kHeads;
  const std::int64_t left = (kv_head + 1) * group - first_head;
  const int heads = static_cast<int>(left < kHeads ? left : kHeads);

  auto& shared = *shared_memory<DecodeShared<kDims, kHeads>>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int head_dim = static_cast<int>(args.head_dim);
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * head_dim; i += kWarps * kWarp) {
    const int h = i / head_dim, d = i % head_dim;
    const int source = h < heads ? h : heads - 1;  // a tile that is not full repeats its last head
    shared.q[h][d] = args.q[span.row * args.q_stride + (first_head + source) * head_dim + d];
  }
  __syncthreads();

  float max[kHeads], sum[kHeads] = {}, values[kHeads][kDimsOfLane] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) max[h] = kMinusInfinity;
  const std::int64_t page = split * kSplitPages + warp;
  const std::int64_t page_key = page * kPageKeys;
  if (page_key < seen.end && page_key + kPageKeys > seen.first) {
    const std::byte* const keys = span.key_pages[page] + kv_head * head_bytes;
    const std::byte* const stored = span.value_pages[page] + kv_head * head_bytes;
    const int begin = static_cast<int>(seen.first > page_key ? seen.first - page_key : 0);
    const int end =
        static_cast<int>(seen.end - page_key < kPageKeys ? seen.end - page_key : kPageKeys);
    float scores[kHeads][kKeysOfLane] = {};
    page_scores<T, kDims, kHeads>(keys, head_dim, shared, lane, scores);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const std::int64_t head = first_head + (h < heads ? h : heads - 1);
      const float slope = args.slopes != nullptr ? args.slopes[head] : 0.0f;
      float largest = kMinusInfinity;
#pragma unroll
      for (int i = 0; i < kKeysOfLane; ++i) {
        const int key = lane + kWarp * i;
        const float distance = static_cast<float>(span.position - page_key - key);
        const float score = scores[h][i] * args.scale - slope * distance;
        scores[h][i] = key >= begin && key < end ? score : kMinusInfinity;
        largest = fmaxf(largest, scores[h][i]);
      }
      max[h] = warp_max(largest);
      float weights = 0.0f;
#pragma unroll
      for (int i = 0; i < kKeysOfLane; ++i) {
        const float weight = rescale(scores[h][i], max[h]);
        shared.weights[warp][h][lane + kWarp * i] = weight;
        weights += weight;
      }
      sum[h] = warp_sum(weights);
    }
    __syncwarp();
#pragma unroll 4
    for (int slot = begin; slot < end; ++slot)  // what is not seen may be NaN
#pragma unroll
      for (int j = 0; j < kDimsOfLane; ++j) {
        const int d = lane + kWarp * j;
        if (d >= head_dim) continue;
        const float value = KvReader<T>::value(stored, head_dim, slot, d);
#pragma unroll
        for (int h = 0; h < kHeads; ++h)
          values[h][j] = fmaf(shared.weights[warp][h][slot], value, values[h][j]);
      }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    Found<kDims>& found = shared.found[warp][h];
#pragma unroll
    for (int j = 0; j < kDimsOfLane; ++j) found.values[lane + kWarp * j] = values[h][j];
    if (lane == 0) {
      found.max = max[h];
      found.sum = sum[h];
    }
  }
  __syncthreads();

  // The warps' findings together, in order.
  for (int i = static_cast<int>(threadIdx.x); i < heads * head_dim; i += kWarps * kWarp) {
    const int h = i / head_dim, d = i % head_dim;
    float largest = kMinusInfinity;
    for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, shared.found[w][h].max);
    float total = 0.0f, value = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      const Found<kDims>& found = shared.found[w][h];
      const float factor = rescale(found.max, largest);
      total = fmaf(factor, found.sum, total);
      value = fmaf(factor, found.values[d], value);
    }
    if (splits == 1) {
      args.out[span.row * args.out_stride + (first_head + h) * head_dim + d] = value / total;
      continue;
    }
    float* const part = scratch_of(scratch, args, blockIdx.z, first_head + h, split, splits);
    part[2 + d] = value;
    if (d == 0) {
      part[0] = largest;
      part[1] = total;
    }
  }
}

// grid (query head, span): the row's splits in order.
__global__ void merge_kernel(AttentionArgs args, const KvSpan* spans, float* scratch,
                             std::int64_t splits) {
  const KvSpan& span = spans[blockIdx.y];
  if (span.rows != 1) return;
  const Visible seen = visible_keys(span.position, args.window);
  const std::int64_t first = seen.first / kSplitKeys;
  const std::int64_t end = (seen.end + kSplitKeys - 1) / kSplitKeys;
  const std::int64_t head = blockIdx.x;
  float largest = kMinusInfinity;
  for (std::int64_t s = first; s < end; ++s)
    largest = fmaxf(largest, *scratch_of(scratch, args, blockIdx.y, head, s, splits));
  for (std::int64_t d = threadIdx.x; d < args.head_dim; d += blockDim.x) {
    float total = 0.0f, value = 0.0f;
    for (std::int64_t s = first; s < end; ++s) {
      const float* const part = scratch_of(scratch, args, blockIdx.y, head, s, splits);
      const float factor = rescale(part[0], largest);
      total = fmaf(factor, part[1], total);
      value = fmaf(factor, part[2 + d], value);
    }
    args.out[span.row * args.out_stride + head * args.head_dim + d] = value / total;
  }
}

struct Decode {
  const AttentionArgs& args;
  const DeviceSpans& spans;
  float* scratch;
  cudaStream_t stream;

  template <typename T, int kDims, int kHeads>
  void run() const {
    const std::int64_t tiles = (args.heads / args.kv_heads + kHeads - 1) / kHeads;
    launch("attention_decode", decode_kernel<T, kDims, kHeads>,
           {.grid = dim3(static_cast<unsigned>(spans.splits),
                         static_cast<unsigned>(args.kv_heads * tiles),
                         static_cast<unsigned>(spans.count)),
            .threads = kWarps * kWarp,
            .shared_bytes = sizeof(DecodeShared<kDims, kHeads>),
            .stream = stream},
           args, spans.spans, scratch, spans.splits, kv_head_bytes(args.kv_type, args.head_dim));
  }
  template <typename T, int kDims>
  void of_heads() const {
    if (args.heads == args.kv_heads)
      run<T, kDims, 1>();
    else
      run<T, kDims, 4>();
  }
  template <typename T>
  void of_type() const {
    if (args.head_dim <= 64)
      of_heads<T, 64>();
    else if (args.head_dim <= 128)
      of_heads<T, 128>();
    else
      of_heads<T, 256>();
  }
};

}  // namespace

std::int64_t decode_scratch_floats(const AttentionArgs& args, const DeviceSpans& spans) {
  return spans.splits <= 1 ? 0 : spans.count * args.heads * spans.splits * (args.head_dim + 2);
}

void attention_decode(const AttentionArgs& args, const DeviceSpans& spans, float* scratch,
                      cudaStream_t stream) {
  if (spans.splits == 0) return;
  const Decode decode{.args = args, .spans = spans, .scratch = scratch, .stream = stream};
  switch (args.kv_type) {
    case KvType::kF32:
      decode.of_type<float>();
      break;
    case KvType::kF16:
      decode.of_type<__half>();
      break;
    case KvType::kQ8:
      decode.of_type<Q8Kv>();
      break;
  }
  if (spans.splits > 1)
    launch("attention_merge", merge_kernel,
           {.grid = dim3(static_cast<unsigned>(args.heads), static_cast<unsigned>(spans.count)),
            .threads = 64,
            .shared_bytes = 0,
            .stream = stream},
           args, spans.spans, scratch, spans.splits);
}

}  // namespace stagecoach::cuda
