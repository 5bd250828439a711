// Warp collectives: lanes do not run in step, so only named lanes and finished collectives count.
#include <gtest/gtest.h>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

class Warps : public SimTest {};

__global__ void shuffles(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  int* const mine = out + t * 8;
  mine[0] = __shfl_sync(0xffffffffu, t, 5);
  mine[1] = __shfl_sync(0xffffffffu, t, 3, 8);
  mine[2] = __shfl_up_sync(0xffffffffu, t, 1u);
  mine[3] = __shfl_down_sync(0xffffffffu, t, 2u, 16);
  mine[4] = __shfl_xor_sync(0xffffffffu, t, 1);
  mine[5] = static_cast<int>(__shfl_xor_sync(0xffffffffu, static_cast<double>(t), 16) + 0.5);
  mine[6] = static_cast<int>(__shfl_sync(0xffffffffu, static_cast<long long>(t) << 40, 31) >> 40);
  mine[7] = __shfl_xor_sync(0xffffffffu, t, 8, 8);
}

TEST_F(Warps, ShufflesMoveWhatTheyShall) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<int> out(64 * 8);
    launch_kernel("shuffles", shuffles, 1, 64, 0, stream, out.get());
    const std::vector<int> all = out.read(stream);
    for (int t = 0; t < 64; ++t) {
      const int warp = t / 32 * 32, lane = t % 32;
      const int* const mine = all.data() + t * 8;
      EXPECT_EQ(mine[0], warp + 5);
      EXPECT_EQ(mine[1], t / 8 * 8 + 3);
      EXPECT_EQ(mine[2], lane == 0 ? t : t - 1);
      EXPECT_EQ(mine[3], lane % 16 < 14 ? t + 2 : t);
      EXPECT_EQ(mine[4], t ^ 1);
      EXPECT_EQ(mine[5], t ^ 16);
      EXPECT_EQ(mine[6], warp + 31);
      EXPECT_EQ(mine[7], lane % 16 < 8 ? t : t - 8);
    }
  }
}

__global__ void halves(unsigned* out) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned mask = lane < 16 ? 0xffffu : 0xffff0000u;
  out[threadIdx.x] =
      lane < 16 ? __ballot_sync(mask, lane % 2 == 0) : __ballot_sync(mask, lane % 4 == 0);
  if (lane < 16) {
    if (__any_sync(mask, lane == 20) != 0) out[threadIdx.x] = 0;
  } else {
    if (__all_sync(mask, lane >= 16) == 0) out[threadIdx.x] = 0;
  }
}

TEST_F(Warps, DisjointMasksAreIndependent) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<unsigned> out(32);
    launch_kernel("halves", halves, 1, 32, 0, stream, out.get());
    const std::vector<unsigned> all = out.read(stream);
    for (unsigned lane = 0; lane < 32; ++lane)
      EXPECT_EQ(all[lane], lane < 16 ? 0x5555u : 0x11110000u);
  }
}

template <bool kWithSync>
__global__ void neighbour(float* out) {
  float* const mine = static_cast<float*>(cuda_sim::shared_memory());
  mine[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (kWithSync) __syncwarp();
  out[threadIdx.x] = mine[threadIdx.x ^ 1];
}

template <bool kWithSync>
int wrong_neighbours() {
  int wrong = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<float> out(64);
    launch_kernel("neighbour", neighbour<kWithSync>, 1, 64, 64 * sizeof(float), stream, out.get());
    const std::vector<float> all = out.read(stream);
    for (std::size_t t = 0; t < 64; ++t) wrong += all[t] != static_cast<float>(t ^ 1);
  }
  return wrong;
}

TEST_F(Warps, LanesAreNotInStep) {
  EXPECT_EQ(wrong_neighbours<true>(), 0);
  EXPECT_GT(wrong_neighbours<false>(), 0);
}

__global__ void lanes_stay_away(int* out) {
  if (threadIdx.x % 2 == 0) out[0] = __shfl_sync(0xffffffffu, 1, 0);
}
__global__ void other_collective(int* out) {
  if (threadIdx.x % 2 == 0) {
    out[0] = __shfl_sync(0xffffffffu, 1, 0);
  } else {
    __syncwarp();
  }
}
__global__ void mask_without_caller(int*) {
  __syncwarp(0xfffffffeu);
}
__global__ void partial_warp(int* out) {
  out[0] = __any_sync(0xffffffffu, 1);
}
__global__ void half_of_the_mask(int* out) {
  const unsigned mask = threadIdx.x == 7 ? 0xffu : 0xffffffffu;
  out[0] = __any_sync(mask, 1);
}
__global__ void active(int* out) {
  out[0] = static_cast<int>(__activemask());
}

TEST_F(Warps, WrongUseFailsTheDevice) {
  struct Case {
    const char* name;
    void (*kernel)(int*);
    unsigned threads;
    const char* text;
  };
  for (const Case& c : {Case{"lanes_stay_away", lanes_stay_away, 32, "__shfl_sync"},
                        Case{"other_collective", other_collective, 32, "__syncwarp"},
                        Case{"mask_without_caller", mask_without_caller, 32, "without the caller"},
                        Case{"partial_warp", partial_warp, 48, "does not have"},
                        Case{"half_of_the_mask", half_of_the_mask, 32, "with mask 0x000000ff"},
                        Case{"active", active, 32, "__activemask"}}) {
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      cuda_sim::reset({.seed = seed});
      Stream stream;
      DeviceArray<int> out(1);
      launch_kernel(c.name, c.kernel, 1, c.threads, 0, stream, out.get());
      EXPECT_CUDA_ERROR(cudaDeviceSynchronize(), cudaErrorLaunchFailure);
      EXPECT_TRUE(message_has(std::string("kernel ") + c.name));
      EXPECT_TRUE(message_has(c.text));
    }
  }
  cuda_sim::reset({});
}

}  // namespace
