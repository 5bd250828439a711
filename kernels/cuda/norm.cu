// LayerNorm and RMSNorm: a block, or for short rows a warp, to a row. The variance is that of the
// differences from the mean, in a second look at the row, which by then is in L1. What comes out is
// written as float32, packed for products, or both.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packing.h"
#include "kernels/cuda/warp.h"

namespace stagecoach::cuda {
namespace {

constexpr int kRowWarps = 8;
constexpr std::int64_t kShortRow = 512;  // columns: heads, that are normed one by one

// Sums over the threads that share a row: lanes of one warp, or a block.
template <int kWarps>
__device__ float row_sum(float value) {
  if constexpr (kWarps == 1)
    return warp_sum(value);
  else
    return block_sum<kWarps>(value, shared_memory<float>());
}

// args.y may be null where rows are packed. `stride`: bytes between packed rows.
template <int kWarps, typename Packing>
__global__ void norm_kernel(NormArgs args, std::byte* packed, std::int64_t stride) {
  constexpr int kThreads = kWarps * kWarp;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const std::int64_t row =
      std::int64_t{blockIdx.x} * (blockDim.x / kThreads) + threadIdx.x / kThreads;
  if (row >= args.rows) return;  // all that share it
  const float* const x = args.x + row * args.cols;
  const float count = static_cast<float>(args.cols);
  float mean = 0.0f;
  if (args.kind == NormKind::kLayerNorm) {
    float sum = 0.0f;
    for (std::int64_t i = thread; i < args.cols; i += kThreads) sum += x[i];
    mean = row_sum<kWarps>(sum) / count;
  }
  float squares = 0.0f;
  for (std::int64_t i = thread; i < args.cols; i += kThreads) {
    const float difference = x[i] - mean;
    squares += difference * difference;
  }
  const float scale = 1.0f / sqrtf(row_sum<kWarps>(squares) / count + args.epsilon);
  for (std::int64_t i = thread; i < packing_cols(args.cols); i += kThreads) {  // whole warps
    float y = 0.0f;
    if (i < args.cols) {
      const float centred = (x[i] - mean) * scale;
      y = args.bias != nullptr ? fmaf(centred, args.weight[i], args.bias[i])
                               : centred * args.weight[i];
      if (args.y != nullptr) args.y[row * args.cols + i] = y;
    }
    Packing::put(packed + row * stride, args.cols, i, y);
  }
}

template <typename Packing>
void launch_norm(const char* name, const NormArgs& args, std::byte* packed, std::int64_t stride,
                 cudaStream_t stream) {
  if (args.rows == 0) return;
  constexpr unsigned kThreads = kRowWarps * kWarp;
  if (args.cols <= kShortRow)
    launch(name, norm_kernel<1, Packing>,
           {.grid = dim3(divide_up(args.rows, kRowWarps)),
            .threads = kThreads,
            .shared_bytes = 0,
            .stream = stream},
           args, packed, stride);
  else
    launch(name, norm_kernel<kRowWarps, Packing>,
           {.grid = dim3(static_cast<unsigned>(args.rows)),
            .threads = kThreads,
            .shared_bytes = kRowWarps * sizeof(float),
            .stream = stream},
           args, packed, stride);
}

}  // namespace

void norm(const NormArgs& args, cudaStream_t stream) {
  launch_norm<NotPacked>("norm", args, nullptr, 0, stream);
}

void norm_and_pack(const NormArgs& args, const PackInputArgs& pack, cudaStream_t stream) {
  with_packing(pack.type, [&]<typename Packing>(Packing) {
    launch_norm<Packing>("norm_and_pack", args, pack.packed,
                         packed_row_stride(pack.type, pack.cols), stream);
  });
}

}  // namespace stagecoach::cuda
