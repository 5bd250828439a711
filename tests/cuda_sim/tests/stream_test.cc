// Streams and events: what is not ordered is wrong for some seed, what is ordered for none.
#include <gtest/gtest.h>

#include <thread>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

class Streams : public SimTest {};

__global__ void twice(const float* x, float* y, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) y[i] = 2.0f * x[i];
}

constexpr int kCount = 100;

// Copies on one stream, computes on another; whether the result is right.
bool copy_then_compute(std::uint64_t seed, bool with_wait) {
  cuda_sim::reset({.seed = seed});
  Stream copies, compute;
  Event copied;
  PinnedArray<float> host(kCount);
  for (int i = 0; i < kCount; ++i) host[static_cast<std::size_t>(i)] = static_cast<float>(i);
  DeviceArray<float> x(kCount), y(kCount);
  EXPECT_CUDA(cudaMemcpyAsync(x.get(), host.get(), x.bytes(), cudaMemcpyHostToDevice, copies));
  EXPECT_CUDA(cudaEventRecord(copied, copies));
  if (with_wait) {
    EXPECT_CUDA(cudaStreamWaitEvent(compute, copied, 0));
  }
  launch_kernel("twice", twice, 4, 32, 0, compute, x.get(), y.get(), kCount);
  const std::vector<float> result = y.read(compute);
  for (int i = 0; i < kCount; ++i)
    if (result[static_cast<std::size_t>(i)] != 2.0f * static_cast<float>(i)) return false;
  return true;
}

TEST_F(Streams, AMissingWaitIsWrongForSomeSeed) {
  int right = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_TRUE(copy_then_compute(seed, true)) << seed;
    right += copy_then_compute(seed, false);
  }
  EXPECT_GT(right, 0);  // a race, not a failure
  EXPECT_LT(right, 50);
}

// Writes the next values into a pinned buffer that a copy may still have to read.
bool reuse_pinned(std::uint64_t seed, bool with_sync) {
  cuda_sim::reset({.seed = seed});
  Stream stream;
  Event copied;
  PinnedArray<int> host(64);
  DeviceArray<int> x(64), y(64);
  for (std::size_t i = 0; i < 64; ++i) host[i] = 1;
  EXPECT_CUDA(cudaMemcpyAsync(x.get(), host.get(), x.bytes(), cudaMemcpyHostToDevice, stream));
  EXPECT_CUDA(cudaEventRecord(copied, stream));
  if (with_sync) {
    EXPECT_CUDA(cudaEventSynchronize(copied));
  }
  for (std::size_t i = 0; i < 64; ++i) host[i] = 2;
  EXPECT_CUDA(cudaMemcpyAsync(y.get(), host.get(), y.bytes(), cudaMemcpyHostToDevice, stream));
  return x.read(stream) == std::vector<int>(64, 1) && y.read(stream) == std::vector<int>(64, 2);
}

TEST_F(Streams, APinnedBufferReusedTooEarlyIsWrongForSomeSeed) {
  int right = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_TRUE(reuse_pinned(seed, true));
    right += reuse_pinned(seed, false);
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, 50);
}

TEST_F(Streams, PageableMemoryIsReadAtTheCallOrLater) {
  int at_the_call = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<int> x(1);
    std::vector<int> host{3};
    EXPECT_CUDA(cudaMemcpyAsync(x.get(), host.data(), x.bytes(), cudaMemcpyDefault, stream));
    host[0] = 4;
    at_the_call += x.read(stream)[0] == 3;
  }
  EXPECT_GT(at_the_call, 10);
  EXPECT_LT(at_the_call, 50);
}

TEST_F(Streams, ACopyCanBeTorn) {
  bool torn = false;
  for (std::uint64_t seed = 0; seed < 200 && !torn; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream writer, reader;
    PinnedArray<int> ones(64), seen(64);
    for (std::size_t i = 0; i < 64; ++i) ones[i] = 1;
    DeviceArray<int> x(std::vector<int>(64, 0));
    EXPECT_CUDA(cudaMemcpyAsync(x.get(), ones.get(), x.bytes(), cudaMemcpyDefault, writer));
    EXPECT_CUDA(cudaMemcpyAsync(seen.get(), x.get(), x.bytes(), cudaMemcpyDefault, reader));
    EXPECT_CUDA(cudaDeviceSynchronize());
    int sum = 0;
    for (std::size_t i = 0; i < 64; ++i) sum += seen[i];
    torn = sum != 0 && sum != 64;
  }
  EXPECT_TRUE(torn);
}

TEST_F(Streams, AWaitMeansTheRecordBeforeIt) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream a, b;
    Event event;
    PinnedArray<int> one(1), two(1);
    one[0] = 1;
    two[0] = 2;
    DeviceArray<int> x(std::vector<int>{0});
    EXPECT_CUDA(cudaStreamWaitEvent(b, event, 0));  // never recorded: nothing to wait for
    EXPECT_CUDA(cudaMemcpyAsync(x.get(), one.get(), 4, cudaMemcpyDefault, a));
    EXPECT_CUDA(cudaEventRecord(event, a));
    EXPECT_CUDA(cudaStreamWaitEvent(b, event, 0));
    EXPECT_CUDA(cudaMemcpyAsync(x.get(), two.get(), 4, cudaMemcpyDefault, b));
    EXPECT_CUDA(cudaEventRecord(event, b));
    EXPECT_CUDA(cudaEventSynchronize(event));
    EXPECT_EQ(x.read(a)[0], 2);
  }
}

TEST_F(Streams, MemsetIsNotOrderedBeforeStreams) {
  int right = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<int> x(16);
    EXPECT_CUDA(cudaMemset(x.get(), 0, x.bytes()));
    right += x.read(stream) == std::vector<int>(16, 0);
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, 50);
}

TEST_F(Streams, EventsMeasureTime) {
  Stream stream;
  Event begin(cudaEventDefault), end(cudaEventDefault), untimed;
  float ms = -1;
  EXPECT_CUDA_ERROR(cudaEventElapsedTime(&ms, begin, end), cudaErrorInvalidResourceHandle);
  EXPECT_CUDA(cudaEventRecord(begin, stream));
  EXPECT_CUDA(cudaEventRecord(end, stream));
  EXPECT_CUDA(cudaEventRecord(untimed, stream));
  EXPECT_CUDA(cudaEventSynchronize(untimed));
  EXPECT_CUDA(cudaEventElapsedTime(&ms, begin, end));
  EXPECT_GE(ms, 0.0f);
  EXPECT_CUDA_ERROR(cudaEventElapsedTime(&ms, begin, untimed), cudaErrorInvalidResourceHandle);
}

TEST_F(Streams, TheDefaultStreamIsRefused) {
  DeviceArray<float> x(kCount);
  launch_kernel("twice", twice, 1, 32, 0, nullptr, x.get(), x.get(), 1);
  EXPECT_CUDA_ERROR(cudaGetLastError(), cudaErrorInvalidResourceHandle);
  EXPECT_TRUE(message_has("default stream"));
  EXPECT_CUDA(cudaGetLastError());
  EXPECT_CUDA_ERROR(cudaMemsetAsync(x.get(), 0, 4, cudaStreamLegacy),
                    cudaErrorInvalidResourceHandle);
  cudaStream_t blocking = nullptr;
  EXPECT_CUDA_ERROR(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault), cudaErrorInvalidValue);
}

TEST_F(Streams, WorkOfADestroyedStreamIsDone) {
  PinnedArray<int> host(1);
  DeviceArray<int> x(std::vector<int>{7});
  {
    Stream stream;
    EXPECT_CUDA(cudaMemcpyAsync(host.get(), x.get(), 4, cudaMemcpyDefault, stream));
  }
  EXPECT_CUDA(cudaDeviceSynchronize());
  EXPECT_EQ(host[0], 7);
}

TEST_F(Streams, SeveralHostThreadsMayCall) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t] {
      Stream stream;
      for (int round = 0; round < 50; ++round) {
        DeviceArray<float> x(std::vector<float>(kCount, static_cast<float>(t))), y(kCount);
        launch_kernel("twice", twice, 4, 32, 0, stream, x.get(), y.get(), kCount);
        EXPECT_EQ(y.read(stream), std::vector<float>(kCount, 2.0f * static_cast<float>(t)));
      }
    });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
