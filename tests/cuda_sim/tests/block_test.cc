// Threads of a block: barriers, shared memory, warps; what is right for every seed and what is not.
#include <gtest/gtest.h>

#include <cmath>

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

__global__ void barrier_of_some(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void barriers_at_two_places(int* out) {
  if (threadIdx.x < 40) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}
__global__ void barrier_after_exit(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = 1;
  __syncthreads();
}

TEST_F(Blocks, DivergentBarriersFailTheDevice) {
  for (const auto kernel : {barrier_of_some, barriers_at_two_places, barrier_after_exit}) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      cuda_sim::reset({.seed = seed});
      Stream stream;
      DeviceArray<int> out(64);
      launch_kernel("divergent", kernel, 1, 64, 0, stream, out.get());
      EXPECT_CUDA(cudaPeekAtLastError());  // it shows later
      EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
      EXPECT_TRUE(message_has("kernel divergent, block (0,0,0)"));
      EXPECT_TRUE(message_has("block_test.cc:"));
      // From here on everything fails.
      void* more = nullptr;
      EXPECT_CUDA_ERROR(cudaMalloc(&more, 4), cudaErrorLaunchFailure);
      EXPECT_CUDA_ERROR(cudaGetLastError(), cudaErrorLaunchFailure);
      EXPECT_CUDA_ERROR(cudaGetLastError(), cudaErrorLaunchFailure);
    }
  }
  cuda_sim::reset({});
}

__global__ void votes(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  out[t] = __syncthreads_count(t % 3 == 0) + 1000 * __syncthreads_or(t == 77) +
           10000 * __syncthreads_and(t != 77) + 100000 * __syncthreads_and(t >= 0);
}

TEST_F(Blocks, BarriersCount) {
  Stream stream;
  DeviceArray<int> out(100);
  launch_kernel("votes", votes, 1, 100, 0, stream, out.get());
  for (const int one : out.read(stream)) EXPECT_EQ(one, 34 + 1000 + 100000);
}

__global__ void indices(uint3* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const uint3 t = threadIdx;
  __syncthreads();
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      make_uint3(t.x == threadIdx.x ? threadIdx.x : 99, threadIdx.y, blockIdx.z);
}

TEST_F(Blocks, EveryThreadKnowsWhoItIs) {
  Stream stream;
  DeviceArray<uint3> out(2 * 3 * 4 * 5 * 6 * 7);
  launch_kernel("indices", indices, dim3(2, 3, 4), dim3(5, 6, 7), 0, stream, out.get());
  const std::vector<uint3> all = out.read(stream);
  for (unsigned i = 0; i < all.size(); ++i) {
    EXPECT_EQ(all[i].x, i % 5);
    EXPECT_EQ(all[i].y, i / 5 % 6);
    EXPECT_EQ(all[i].z, i / 210 / 6);
  }
}

__global__ void shared_access(int offset, float* out) {
  float* const mine = shared_floats();
  if (threadIdx.x == 0) {
    out[0] = mine[0];
    mine[offset] = 1.0f;
  }
}

TEST_F(Blocks, SharedMemoryIsNanAndEndsWhereItEnds) {
  struct Case {
    int offset;
    bool good;
  };
  for (const Case& c :
       {Case{24, true}, Case{25, false}, Case{28, false}, Case{-1, false}, Case{5000, false}}) {
    cuda_sim::reset({});
    Stream stream;
    DeviceArray<float> out(1);
    launch_kernel("shared_access", shared_access, 2, 64, 25 * sizeof(float), stream, c.offset,
                  out.get());
    const cudaError_t error = cudaStreamSynchronize(stream);
    EXPECT_STREQ(cudaGetErrorName(error), c.good ? "cudaSuccess" : "cudaErrorIllegalAddress");
    if (c.good) {
      EXPECT_TRUE(std::isnan(out.read(stream)[0]));
    } else {
      EXPECT_TRUE(message_has("shared memory"));
    }
  }
  cuda_sim::reset({});
}

__global__ void counters(int* number, unsigned* largest, float* sum, unsigned long long* wide) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(number, 1);
  atomicMax(largest, i);
  atomicAdd(sum, 0.5f);
  atomicAdd(wide, 1ull << 33);
}

// A lock: a thread that spins must let the holder run.
__global__ void locked(int* lock, int* total) {
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  const int seen = *total;
  __threadfence();
  *total = seen + 1;
  atomicExch(lock, 0);
}

TEST_F(Blocks, AtomicsAreAtomic) {
  Stream stream;
  DeviceArray<int> number({0, 0, 0});
  DeviceArray<unsigned> largest(std::vector<unsigned>{0});
  DeviceArray<float> sum(std::vector<float>{0});
  DeviceArray<unsigned long long> wide(std::vector<unsigned long long>{0});
  launch_kernel("counters", counters, 10, 100, 0, stream, number.get(), largest.get(), sum.get(),
                wide.get());
  launch_kernel("locked", locked, 3, 70, 0, stream, number.get() + 1, number.get() + 2);
  const std::vector<int> numbers = number.read(stream);
  EXPECT_EQ(numbers[0], 1000);
  EXPECT_EQ(numbers[2], 210);
  EXPECT_EQ(largest.read(stream)[0], 999u);
  EXPECT_EQ(sum.read(stream)[0], 500.0f);
  EXPECT_EQ(wide.read(stream)[0], 1000ull << 33);
}

}  // namespace
