// Threads of a block: barriers, shared memory, warps; what is right for every seed and what is not.
#include <gtest/gtest.h>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

constexpr int kThreads = 256;

__device__ float* shared_floats() {
  return static_cast<float*>(cuda_sim::shared_memory());
}

template <bool kWithBarrier>
__global__ void block_sum(const float* x, float* sum, int count) {
  float* const part = shared_floats();
  const int t = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x * blockDim.x) + t;
  part[t] = i < count ? x[i] : 0.0f;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (t < half) part[t] += part[t + half];
    if constexpr (kWithBarrier) __syncthreads();
  }
  if (t == 0) sum[blockIdx.x] = part[0];
}

class Blocks : public SimTest {};

template <bool kWithBarrier>
float sum_with_seed(std::uint64_t seed) {
  EXPECT_EQ(cuda_sim::reset({.seed = seed}), "");
  Stream stream;
  DeviceArray<float> x(std::vector<float>(1000, 1.0f)), sum(4);
  launch_kernel("block_sum", block_sum<kWithBarrier>, 4, kThreads, kThreads * sizeof(float), stream,
                x.get(), sum.get(), 1000);
  const std::vector<float> parts = sum.read(stream);
  return parts[0] + parts[1] + parts[2] + parts[3];
}

TEST_F(Blocks, ReductionIsRightForEverySeed) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) ASSERT_EQ(sum_with_seed<true>(seed), 1000.0f);
}

TEST_F(Blocks, ReductionWithoutABarrierIsWrong) {
  int wrong = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) wrong += sum_with_seed<false>(seed) != 1000.0f;
  EXPECT_GT(wrong, 0);
}

}  // namespace
