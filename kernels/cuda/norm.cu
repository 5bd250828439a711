// LayerNorm and RMSNorm: a block, or for short rows a warp, to a row. The variance is that of the
// differences from the mean, in a second look at the row, which by then is in L1.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.h"
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

template <int kWarps>
__global__ void norm_kernel(NormArgs args) {
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
  float* const y = args.y + row * args.cols;
  for (std::int64_t i = thread; i < args.cols; i += kThreads) {
    const float normed = (x[i] - mean) * scale * args.weight[i];
    y[i] = args.bias != nullptr ? normed + args.bias[i] : normed;
  }
}

}  // namespace

void norm(const NormArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  constexpr unsigned kThreads = kRowWarps * kWarp;
  if (args.cols <= kShortRow)
    launch("norm_short", norm_kernel<1>,
           {.grid = dim3(divide_up(args.rows, kRowWarps)),
            .threads = kThreads,
            .shared_bytes = 0,
            .stream = stream},
           args);
  else
    launch("norm", norm_kernel<kRowWarps>,
           {.grid = dim3(static_cast<unsigned>(args.rows)),
            .threads = kThreads,
            .shared_bytes = kRowWarps * sizeof(float),
            .stream = stream},
           args);
}

}  // namespace stagecoach::cuda
