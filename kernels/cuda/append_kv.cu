// New keys and values into their pages (kernels/include/kv_page.h): a warp to 32 dimensions of one
// position, which is a group of q8. With rotary embedding keys are rotated on their way, and
// further blocks rotate the queries where they are.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/rotation.h"
#include "kernels/cuda/span_tiles.h"
#include "kernels/cuda/warp.h"

namespace stagecoach::cuda {
namespace {

constexpr int kWarps = 4;

// Where a lane's element goes.
struct Place {
  std::byte* head;  // of the page
  std::int64_t head_dim, slot;
  std::int64_t group;
  int lane;
  bool is_key;

  __device__ std::int64_t d() const { return group * kKvGroupDims + lane; }
};

template <typename T>
__device__ void write(const Place& at, float x) {
  if (at.d() >= at.head_dim) return;
  const std::int64_t index =
      at.is_key ? at.d() * kKvPageTokens + at.slot : at.slot * at.head_dim + at.d();
  reinterpret_cast<T*>(at.head)[index] = from_float<T>(x);
}

struct Q8 {};

template <>
__device__ void write<Q8>(const Place& at, float x) {
  const bool inside = at.d() < at.head_dim;
  if (!inside) x = 0.0f;
  const bool finite = __all_sync(kAllLanes, isfinite(x));
  const float largest = warp_max(fabsf(x));
  __nv_bfloat16 stored = __float2bfloat16_rn(0.0f);
  if (!finite)
    stored = __float2bfloat16_rn(__int_as_float(0x7fc00000));
  else if (largest >= kKvSmallestGroup)
    stored = __float2bfloat16_rn(largest / 127.0f);
  const float scale = __bfloat162float(stored);
  const float quant = scale > 0.0f ? rintf(x / scale) : 0.0f;
  std::byte* const group = at.head + at.group * kKvGroupBytes;
  if (at.lane == 0) reinterpret_cast<__nv_bfloat16*>(group)[at.slot] = stored;
  if (!inside) return;
  const std::int64_t left = at.head_dim - at.group * kKvGroupDims;
  const std::int64_t dims = left < kKvGroupDims ? left : kKvGroupDims;
  const std::int64_t index =
      at.is_key ? at.lane * kKvPageTokens + at.slot : at.slot * dims + at.lane;
  reinterpret_cast<std::int8_t*>(group + kKvScalesBytes)[index] = static_cast<std::int8_t>(quant);
}

struct Rotaries {
  RotaryArgs query, key;
};

// blockIdx: x row of all spans, y kv head and, where there is something to rotate, query heads
// after them; warps share out the groups.
template <typename T, bool kRotates>
__global__ void append_kernel(AppendKvArgs args, const KvSpan* spans, std::int64_t count,
                              std::int64_t head_bytes, Rotaries rotary) {
  const SpanTile at_row = find_tile(spans, count, blockIdx.x,
                                    [](const KvSpan& span) { return static_cast<int>(span.rows); });
  if (at_row.span == nullptr) return;
  const KvSpan& span = *at_row.span;
  const std::int64_t r = at_row.tile, head = blockIdx.y;
  if (kRotates && head >= args.kv_heads) {
    const std::int64_t half = rotary.query.rotary_dim / 2, first = (head - args.kv_heads) * half;
    for (std::int64_t i = threadIdx.x; i < half; i += kWarps * kWarp)
      rotate_pair(rotary.query, span.row + r, first + i);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t groups = (args.head_dim + kKvGroupDims - 1) / kKvGroupDims;
  const std::int64_t page = (span.position + r) / kKvPageTokens;
  Place at{.head = nullptr,
           .head_dim = args.head_dim,
           .slot = (span.position + r) % kKvPageTokens,
           .group = 0,
           .lane = lane,
           .is_key = true};
  for (std::int64_t g = threadIdx.x / kWarp; g < groups; g += kWarps) {
    at.group = g;
    const std::int64_t source = (span.row + r) * args.stride + head * args.head_dim;
    const bool inside = at.d() < args.head_dim;
    float key = 0.0f;
    if (inside)
      key = kRotates ? rotated(rotary.key, span.row + r, args.k + source, at.d())
                     : args.k[source + at.d()];
    at.head = span.key_pages[page] + head * head_bytes;
    at.is_key = true;
    write<T>(at, key);
    at.head = span.value_pages[page] + head * head_bytes;
    at.is_key = false;
    write<T>(at, inside ? args.v[source + at.d()] : 0.0f);
  }
}

template <bool kRotates>
void launch_append(const char* name, const AppendKvArgs& args, const Rotaries& rotary,
                   std::int64_t heads, const DeviceSpans& spans, cudaStream_t stream) {
  if (spans.rows == 0) return;
  const auto kernel = args.kv_type == KvType::kF32   ? append_kernel<float, kRotates>
                      : args.kv_type == KvType::kF16 ? append_kernel<__half, kRotates>
                                                     : append_kernel<Q8, kRotates>;
  launch(name, kernel,
         {.grid = dim3(tiles_at_most(spans, 1), static_cast<unsigned>(heads)),
          .threads = kWarps * kWarp,
          .shared_bytes = 0,
          .stream = stream},
         args, spans.spans, spans.count, kv_head_bytes(args.kv_type, args.head_dim), rotary);
}

}  // namespace

void append_kv(const AppendKvArgs& args, const DeviceSpans& spans, cudaStream_t stream) {
  launch_append<false>("append_kv", args, {}, args.kv_heads, spans, stream);
}

void rotate_and_append(const RotaryArgs& query, const RotaryArgs& key, const AppendKvArgs& args,
                       const DeviceSpans& spans, cudaStream_t stream) {
  launch_append<true>("rotate_and_append", args, {.query = query, .key = key},
                      args.kv_heads + query.heads, spans, stream);
}

}  // namespace stagecoach::cuda
