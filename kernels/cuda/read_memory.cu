// Reads memory as fast as it can be read: a limit for the other kernels.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/launch.h"

namespace stagecoach::cuda {
namespace {

constexpr int kUnrolled = 8;

// Adds up words, so that no read can be left out; `sums` gets what nobody looks at.
__global__ void read_kernel(const uint4* words, std::int64_t count, std::uint32_t* sums) {
  const std::int64_t threads = std::int64_t{gridDim.x} * blockDim.x;
  const std::int64_t first = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  std::uint32_t sum = 0;
  std::int64_t i = first;
  for (; i + (kUnrolled - 1) * threads < count; i += kUnrolled * threads) {
    uint4 loaded[kUnrolled];
#pragma unroll
    for (int j = 0; j < kUnrolled; ++j) loaded[j] = __ldcs(words + i + j * threads);
#pragma unroll
    for (int j = 0; j < kUnrolled; ++j)
      sum += loaded[j].x ^ loaded[j].y ^ loaded[j].z ^ loaded[j].w;
  }
  for (; i < count; i += threads) sum += words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
  sums[first] = sum;
}

}  // namespace

void read_memory(const std::byte* data, std::int64_t bytes, unsigned blocks, std::uint32_t* sums,
                 cudaStream_t stream) {
  launch("read_memory", read_kernel,
         {.grid = dim3(blocks), .threads = kReadThreads, .shared_bytes = 0, .stream = stream},
         reinterpret_cast<const uint4*>(data), bytes / static_cast<std::int64_t>(sizeof(uint4)),
         sums);
}

}  // namespace stagecoach::cuda
