// Attention of decode steps: one row of queries for each sequence against all its keys, as fast as
// they can be read.
//
//   grid    (split of the keys, kv head and tile of its query heads, span)
//   block   kWarps warps; each takes one page of the split, 64 keys
//   lane    scores: a run of 8 keys, in every fourth dimension; values: a run of 8 dimensions, of
//           every fourth key with heads of up to 64, of every second of up to 128, else of each
//
// Lanes that have sums of the same keys or dimensions exchange them until each has its own part.
// A split is always the same 256 positions, so a row's sums do not depend on its batch-mates.
#include <type_traits>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/kv_reader.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace stagecoach::cuda {
namespace {

constexpr int kWarps = static_cast<int>(kSplitPages);
constexpr int kLanesOfKeys = kPageKeys / kRun;
constexpr int kDimsAtOnce = kWarp / kLanesOfKeys;
constexpr int kKeysOfLane = kPageKeys / kWarp;  // whose scores it ends up with
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

// kCount sums in each lane; lanes whose numbers differ by multiples of kLanes have sums of the same
// things. Afterwards each has an equal share of the totals in front: those from
// lane / kLanes · share on.
template <int kLanes, int kCount>
__device__ void share_out_sums(float (&sums)[kCount], int lane) {
  int count = kCount;
#pragma unroll
  for (int step = kWarp / 2; step >= kLanes; step /= 2) {
    count /= 2;
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float other = upper ? sums[i] : sums[i + count];
      sums[i] = (upper ? sums[i + count] : sums[i]) + __shfl_xor_sync(kAllLanes, other, step);
    }
  }
}

// Loads of a run that a lane has under way.
template <typename T>
constexpr int kAhead = std::is_same_v<T, float> ? 4 : 8;

// q · k of a page's keys for all query heads of the tile, of a lane the kKeysOfLane first: keys
// lane % kLanesOfKeys · kRun + lane / kLanesOfKeys · kKeysOfLane + i.
template <typename T, int kDims, int kHeads>
__device__ void page_scores(const std::byte* keys, int head_dim,
                            const DecodeShared<kDims, kHeads>& shared, int lane,
                            float (&scores)[kHeads][kRun]) {
  [[maybe_unused]] constexpr int kUnrolled = kAhead<T>;
  const int first = lane % kLanesOfKeys * kRun;
  for (int begin = 0; begin < head_dim; begin += kGroupDims) {
    const typename KvReader<T>::KeyScales scales(keys, begin, first);
#pragma unroll(kUnrolled)
    for (int step = 0; step < kGroupDims; step += kDimsAtOnce) {
      const int d = begin + step + lane / kLanesOfKeys;
      float run[kRun];
      KvReader<T>::keys(keys, d, first, scales, d < head_dim, run);
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int i = 0; i < kRun; ++i) scores[h][i] = fmaf(shared.q[h][d], run[i], scores[h][i]);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) share_out_sums<kLanesOfKeys>(scores[h], lane);
}

// weights · values over slots [begin, end) of a page, the only ones that are read: what is not seen
// may be NaN. Of a lane the dimensions from lane % kLanes · kRun + lane / kLanes · kDimsOfLane on.
// kWhole: head_dim is a multiple of kRun; else rows begin anywhere.
template <typename T, bool kWhole, int kDims, int kHeads>
__device__ void page_values(const std::byte* stored, int head_dim, int begin, int end,
                            const float (&weights)[kHeads][kPageKeys], int lane,
                            float (&values)[kHeads][kRun]) {
  constexpr int kLanes = kDims / kRun;  // of a slot
  constexpr int kSlotsAtOnce = kWarp / kLanes;
  constexpr int kUnrolled = kWhole ? kAhead<T> : 1;
  constexpr int kSlots = kSlotsAtOnce * kUnrolled;
  const int d = lane % kLanes * kRun;
  for (int at = begin / kSlots * kSlots; at < end; at += kSlots)
#pragma unroll
    for (int step = 0; step < kSlots; step += kSlotsAtOnce) {
      const int slot = at + step + lane / kLanes;
      const bool seen = slot >= begin && slot < end;
      float run[kRun];
      if constexpr (kWhole) {
        KvReader<T>::values(stored, head_dim, slot, d, seen && d < head_dim, run);
      } else {
#pragma unroll
        for (int i = 0; i < kRun; ++i)
          run[i] =
              seen && d + i < head_dim ? KvReader<T>::value(stored, head_dim, slot, d + i) : 0.0f;
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h)
#pragma unroll
        for (int i = 0; i < kRun; ++i) values[h][i] = fmaf(weights[h][slot], run[i], values[h][i]);
    }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) share_out_sums<kLanes>(values[h], lane);
}

// Four of heads of up to 128 dimensions on a multiprocessor leave room for the loads under way.
template <int kDims>
constexpr int kBlocks = kDims <= 128 ? 4 : 1;

template <typename T, int kDims, int kHeads>
__global__ void __launch_bounds__(kWarps* kWarp, kBlocks<kDims>)
    decode_kernel(AttentionArgs args, const KvSpan* spans, float* scratch, std::int64_t splits,
                  std::int64_t head_bytes) {
  constexpr int kDimsOfLane = kDims / kWarp;  // whose values it ends up with
  constexpr int kLanesOfDims = kDims / kRun;
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
  for (int i = static_cast<int>(threadIdx.x); i < kHeads * kDims; i += kWarps * kWarp) {
    const int h = i / kDims, d = i % kDims;
    const int source = h < heads ? h : heads - 1;  // a tile that is not full repeats its last head
    const float* const q = args.q + span.row * args.q_stride + (first_head + source) * head_dim;
    shared.q[h][d] = d < head_dim ? q[d] : 0.0f;
  }
  __syncthreads();

  float max[kHeads], sum[kHeads] = {}, values[kHeads][kRun] = {};
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
    float scores[kHeads][kRun] = {};
    page_scores<T>(keys, head_dim, shared, lane, scores);
    const int first_key = lane % kLanesOfKeys * kRun + lane / kLanesOfKeys * kKeysOfLane;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const std::int64_t head = first_head + (h < heads ? h : heads - 1);
      const float slope = args.slopes != nullptr ? args.slopes[head] : 0.0f;
      float largest = kMinusInfinity;
#pragma unroll
      for (int i = 0; i < kKeysOfLane; ++i) {
        const int key = first_key + i;
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
        shared.weights[warp][h][first_key + i] = weight;
        weights += weight;
      }
      sum[h] = warp_sum(weights);
    }
    __syncwarp();
    if (head_dim % kRun == 0)
      page_values<T, true, kDims>(stored, head_dim, begin, end, shared.weights[warp], lane, values);
    else
      page_values<T, false, kDims>(stored, head_dim, begin, end, shared.weights[warp], lane,
                                   values);
  }
  const int first_dim = lane % kLanesOfDims * kRun + lane / kLanesOfDims * kDimsOfLane;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    Found<kDims>& found = shared.found[warp][h];
#pragma unroll
    for (int j = 0; j < kDimsOfLane; ++j) found.values[first_dim + j] = values[h][j];
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
