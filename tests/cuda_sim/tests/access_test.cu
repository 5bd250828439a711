// What a kernel of instrumented sources may access, whatever way the pointer came to it.
#include <gtest/gtest.h>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

class Accesses : public SimTest {};

struct Arguments {
  const int* from;
  int* to;
  int count;
};

constexpr int kTable[] = {10, 11, 12, 13};

__global__ void copy(Arguments args) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < args.count) args.to[i] = args.from[i] + kTable[i % 4];
}

__global__ void chase(const Arguments* args) {
  *args->to = *args->from;
}

// Thread 1 reads what thread 0 has on its stack.
__global__ void read_a_stack(int* out) {
  auto** const shared = static_cast<volatile int**>(cuda_sim::shared_memory());
  volatile int own = 1;
  if (threadIdx.x == 0) *shared = &own;
  __syncthreads();
  if (threadIdx.x == 1) *out = **shared;
  __syncthreads();
}

template <class... Parameters, class... Values>
void expect_refused(void (*kernel)(Parameters...), unsigned threads, const char* message,
                    Values... values) {
  Stream stream;
  launch_kernel("kernel", kernel, 1, threads, 16, stream, values...);
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_TRUE(message_has(message));
}

TEST_F(Accesses, OfDeviceAndPinnedMemoryAndConstantsAreRight) {
  Stream stream;
  PinnedArray<int> from(40);
  for (std::size_t i = 0; i < 40; ++i) from[i] = static_cast<int>(i);
  DeviceArray<int> to(40);
  launch_kernel("copy", copy, 1, 64, 0, stream, Arguments{from.get(), to.get(), 40});
  EXPECT_EQ(to.read(stream)[39], 39 + 13);
}

TEST_F(Accesses, ThroughStructsToPageableMemoryAreRefused) {
#ifndef __SANITIZE_THREAD__
  GTEST_SKIP() << "kernels are not instrumented in this build";
#endif
  const std::vector<int> heap(40);
  const int stack[40] = {};
  for (const int* host : {heap.data(), stack}) {
    cuda_sim::reset({});
    DeviceArray<int> to(40);
    expect_refused(copy, 64, "pageable memory of the host", Arguments{host, to.get(), 40});
  }
}

TEST_F(Accesses, OfAnotherThreadsStackAreRefused) {
#ifndef __SANITIZE_THREAD__
  GTEST_SKIP() << "kernels are not instrumented in this build";
#endif
  DeviceArray<int> to(1);
  expect_refused(read_a_stack, 2, "another thread's", to.get());
}

__global__ void add_to_one(int* sum) {
  if (threadIdx.x == 0) *sum += 1;
}
__global__ void add_atomically(int* sum) {
  if (threadIdx.x == 0) atomicAdd(sum, 1);
}
__global__ void write_own_bytes(char* bytes) {
  bytes[blockIdx.x] = static_cast<char>(blockIdx.x);
}

// Nobody else's result shows it: blocks run one after the other.
TEST_F(Accesses, OfTwoBlocksToOneWordAreRefused) {
#ifndef __SANITIZE_THREAD__
  GTEST_SKIP() << "kernels are not instrumented in this build";
#endif
  int refused = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<int> sum(std::vector<int>{0});
    DeviceArray<char> bytes(8);
    launch_kernel("write_own_bytes", write_own_bytes, 8, 1, 0, stream, bytes.get());
    launch_kernel("add_atomically", add_atomically, 4, 32, 0, stream, sum.get());
    EXPECT_CUDA(cudaStreamSynchronize(stream));
    launch_kernel("add_to_one", add_to_one, 4, 32, 0, stream, sum.get());
    if (cudaStreamSynchronize(stream) == cudaSuccess) continue;
    ++refused;
    EXPECT_TRUE(message_has("kernel add_to_one, block ("));
    EXPECT_TRUE(message_has("byte 0 of an allocation of 4 bytes"));
  }
  EXPECT_GT(refused, 0);
  EXPECT_LT(refused, 50);
  cuda_sim::reset({});
}

TEST_F(Accesses, OfAnotherDevicesMemoryAreRefused) {
#ifndef __SANITIZE_THREAD__
  GTEST_SKIP() << "kernels are not instrumented in this build";
#endif
  cuda_sim::reset({.devices = 2});
  EXPECT_CUDA(cudaSetDevice(1));
  DeviceArray<int> other(1);
  EXPECT_CUDA(cudaSetDevice(0));
  DeviceArray<Arguments> args(std::vector<Arguments>{{other.get(), other.get(), 1}});
  EXPECT_CUDA(cudaDeviceSynchronize());
  expect_refused(chase, 1, "device 1", args.get());
}

}  // namespace
