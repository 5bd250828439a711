// Device and pinned memory: limits, guards, canaries, and host code that must stay out.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

class Memory : public SimTest {};
using MemoryDeathTest = Memory;

__global__ void write_at(int* x, long long offset) {
  if (threadIdx.x == 5) x[offset] = 1;
}
__global__ void read_at(const int* x, long long offset, int* out) {
  if (threadIdx.x == 5) out[0] = x[offset];
}

// 64 ints end at a page, 50 at canaries.
cudaError_t write_to(std::size_t count, long long offset) {
  cuda_sim::reset({});
  Stream stream;
  DeviceArray<int> x(count);
  launch_kernel("write_at", write_at, 2, 32, 0, stream, x.get(), offset);
  return cudaStreamSynchronize(stream);
}

TEST_F(Memory, AWriteBehindTheEndFailsTheDevice) {
  EXPECT_CUDA(write_to(64, 63));
  EXPECT_CUDA_ERROR(write_to(64, 64), cudaErrorIllegalAddress);
  EXPECT_TRUE(message_has("kernel write_at, block ("));
  EXPECT_TRUE(message_has("thread (5,0,0)"));
  EXPECT_TRUE(message_has("0 bytes behind the end of an allocation of 256 bytes"));
  EXPECT_CUDA(write_to(50, 49));
  EXPECT_CUDA_ERROR(write_to(50, 50), cudaErrorIllegalAddress);
  EXPECT_TRUE(message_has("kernel write_at wrote outside of an allocation"));
  EXPECT_CUDA_ERROR(write_to(64, -1), cudaErrorIllegalAddress);
  EXPECT_CUDA_ERROR(write_to(64, 1'000'000), cudaErrorIllegalAddress);
  EXPECT_CUDA_ERROR(write_to(64, -123'456'789'012), cudaErrorIllegalAddress);
  cuda_sim::reset({});
}

TEST_F(Memory, TheDeviceWorksAgainAfterAReset) {
  EXPECT_CUDA_ERROR(write_to(64, 64), cudaErrorIllegalAddress);
  EXPECT_CUDA(write_to(64, 3));
  cuda_sim::reset({});
}

TEST_F(Memory, FreedMemoryIsGone) {
  Stream stream;
  int* freed = nullptr;
  ASSERT_CUDA(cudaMalloc(&freed, 256));
  ASSERT_CUDA(cudaFree(freed));
  DeviceArray<int> other(64), out(1);
  EXPECT_NE(freed, other.get());
  const long long offset = freed - other.get();
  launch_kernel("read_at", read_at, 1, 32, 0, stream, other.get(), offset, out.get());
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_TRUE(message_has("that were freed"));
  cuda_sim::reset({});
}

TEST_F(Memory, PointersOfArgumentsAreChecked) {
  int on_stack = 0;
  std::vector<int> on_heap(8);
  for (int* wrong : {&on_stack, on_heap.data(), reinterpret_cast<int*>(16)}) {
    cuda_sim::reset({});
    Stream stream;
    launch_kernel("write_at", write_at, 1, 32, 0, stream, wrong, 0);
    EXPECT_CUDA(cudaGetLastError());
    EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
    EXPECT_TRUE(message_has("pointer 1 of its arguments"));
  }
  cuda_sim::reset({});
  Stream stream;
  PinnedArray<int> pinned(8);
  launch_kernel("write_at", write_at, 1, 32, 0, stream, pinned.get(), 7);
  EXPECT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_EQ(pinned[7], 1);
}

TEST_F(Memory, FreshMemoryIsNan) {
  Stream stream;
  DeviceArray<float> x(100);
  for (const float one : x.read(stream)) EXPECT_TRUE(std::isnan(one));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.get()) % 256, 0u);
}

TEST_F(Memory, IsLimitedAndCountedInPiecesThatDriversMap) {
  cuda_sim::reset({.memory = 6 << 20, .piece = 2 << 20});
  const auto free_bytes = [] {
    std::size_t free = 0, total = 0;
    EXPECT_CUDA(cudaMemGetInfo(&free, &total));
    EXPECT_EQ(total, 6u << 20);
    return free;
  };
  EXPECT_EQ(free_bytes(), 6u << 20);
  void *large = nullptr, *small[2] = {}, *more = nullptr;
  ASSERT_CUDA(cudaMalloc(&large, (2 << 20) + 1));
  EXPECT_EQ(free_bytes(), 2u << 20);
  ASSERT_CUDA(cudaMalloc(&small[0], 600 << 10));
  EXPECT_EQ(free_bytes(), 0u);
  ASSERT_CUDA(cudaMalloc(&small[1], 600 << 10));  // beside the other
  EXPECT_CUDA_ERROR(cudaMalloc(&more, 1 << 20), cudaErrorMemoryAllocation);
  EXPECT_EQ(more, nullptr);
  EXPECT_CUDA_ERROR(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_CUDA(cudaGetLastError());  // it is not sticky
  ASSERT_CUDA(cudaFree(large));
  ASSERT_CUDA(cudaMalloc(&more, 1 << 20));
  EXPECT_EQ(free_bytes(), 2u << 20);
  EXPECT_EQ(cuda_sim::statistics().peak_memory, 6u << 20);
  for (void* one : {small[0], small[1], more}) ASSERT_CUDA(cudaFree(one));
  EXPECT_EQ(free_bytes(), 6u << 20);
}

TEST_F(Memory, LeaksAreNamed) {
  void* pointer = nullptr;
  void* pinned = nullptr;
  ASSERT_CUDA(cudaMalloc(&pointer, 100));
  ASSERT_CUDA(cudaHostAlloc(&pinned, 10, cudaHostAllocDefault));
  const std::string leaks = cuda_sim::reset({});
  EXPECT_NE(leaks.find("device 0: 100 bytes"), std::string::npos) << leaks;
  EXPECT_NE(leaks.find("pinned memory: 10 bytes"), std::string::npos) << leaks;
}

TEST_F(Memory, CopiesAreChecked) {
  Stream stream;
  DeviceArray<int> x(64);
  std::vector<int> host(100);
  EXPECT_CUDA_ERROR(cudaMemcpyAsync(x.get(), host.data(), 260, cudaMemcpyHostToDevice, stream),
                    cudaErrorInvalidValue);
  EXPECT_CUDA_ERROR(cudaMemcpyAsync(x.get(), host.data(), 4, cudaMemcpyDeviceToDevice, stream),
                    cudaErrorInvalidValue);
  EXPECT_CUDA_ERROR(cudaMemsetAsync(x.get() + 63, 0, 8, stream), cudaErrorInvalidValue);
  EXPECT_CUDA_ERROR(cudaFree(x.get() + 1), cudaErrorInvalidValue);
  EXPECT_CUDA_ERROR(cudaFreeHost(host.data()), cudaErrorInvalidValue);
}

TEST_F(Memory, PinnedMemoryFreedTooEarlyIsFound) {
  bool found = false;
  for (std::uint64_t seed = 0; seed < 30 && !found; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<int> x(64);
    {
      PinnedArray<int> host(64);
      EXPECT_CUDA(cudaMemcpyAsync(x.get(), host.get(), 256, cudaMemcpyHostToDevice, stream));
    }
    found = cudaStreamSynchronize(stream) == cudaErrorIllegalAddress;
  }
  EXPECT_TRUE(found);
  EXPECT_TRUE(message_has("freed before the copy ran"));
  cuda_sim::reset({});
}

TEST_F(Memory, RegisteredMemoryIsPinned) {
  Stream stream;
  std::vector<int> host(64, 5);
  DeviceArray<int> x(64);
  ASSERT_CUDA(cudaHostRegister(host.data(), 256, cudaHostRegisterDefault));
  EXPECT_CUDA_ERROR(cudaHostRegister(host.data() + 8, 64, 0), cudaErrorHostMemoryAlreadyRegistered);
  EXPECT_CUDA_ERROR(cudaHostRegister(host.data(), 256, cudaHostRegisterReadOnly),
                    cudaErrorNotSupported);
  EXPECT_CUDA(cudaMemcpyAsync(x.get(), host.data(), 256, cudaMemcpyHostToDevice, stream));
  EXPECT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_CUDA(cudaHostUnregister(host.data()));
  EXPECT_CUDA_ERROR(cudaHostUnregister(host.data()), cudaErrorHostMemoryNotRegistered);
  EXPECT_EQ(x.read(stream), host);
}

TEST_F(MemoryDeathTest, HostCodeThatTouchesDeviceMemoryDies) {
  Stream stream;
  DeviceArray<int> x(64);
  EXPECT_CUDA(cudaMemsetAsync(x.get(), 0, 256, stream));
  EXPECT_CUDA(cudaStreamSynchronize(stream));
  EXPECT_DEATH(std::memset(x.get() + 2, 0, 4),
               "host code touches device memory .*byte 8 of an allocation of 256 bytes");
}

__global__ void deep(int* out, int depth) {
  volatile char frame[4096];
  frame[0] = static_cast<char>(depth);
  if (depth > 0) deep(out, depth - 1);
  out[0] = frame[0];
}

TEST_F(Memory, AStackOverflowIsNamed) {
  Stream stream;
  DeviceArray<int> x(1);
  launch_kernel("deep", deep, 1, 2, 0, stream, x.get(), 1000);
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_TRUE(message_has("stack"));
  cuda_sim::reset({});
}

}  // namespace
