// Products on tensor cores, ldmatrix and cp.async by the kernels' own functions, against plain
// loops. Where lanes have their elements is written here once more, as the PTX ISA has it.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdlib>

#include "kernels/cuda/mma.h"
#include "sim_test.h"

namespace {

using stagecoach::cuda::MatrixA;
using stagecoach::cuda::MatrixB;
using stagecoach::cuda::MatrixC;

class Tensor : public SimTest {};

// What a lane's registers are, each 16-bit element a register of its own.
struct Element {
  int row, column;
};
// PTX ISA, mma.m16n8k16, "for .f16 and .bf16": a has elements a0 … a7, b b0 … b3, c c0 … c3.
Element a_element(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  const bool upper = (i >= 0 && i < 2) || (i >= 4 && i < 6);
  return {upper ? group : group + 8, i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8};
}
Element b_element(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8, group};
}
Element c_element(int lane, int i) {
  const int group = lane >> 2, in_group = lane % 4;
  return {i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
}

template <typename T>
std::uint32_t bits_of(float x);
template <>
std::uint32_t bits_of<__half>(float x) {
  return stagecoach::f32_to_f16(x);
}
template <>
std::uint32_t bits_of<__nv_bfloat16>(float x) {
  return stagecoach::f32_to_bf16(x);
}

struct Fragments {
  MatrixA a;
  MatrixB b;
  MatrixC c;
};

template <typename T>
__global__ void multiply(Fragments* warps) {
  Fragments& own = warps[threadIdx.x];
  stagecoach::cuda::multiply_add<T>(own.a, own.b, own.c);
}

template <typename T>
void products_of_two_warps() {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    cuda_sim::reset({.seed = seed});
    // Small integers: exact in every order.
    float a[2][16][16], b[2][16][8], c[2][16][8];
    for (int w = 0; w < 2; ++w)
      for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) {
          a[w][i][j] = static_cast<float>((7 * i + 3 * j * j + w) % 11 - 5);
          if (j >= 8) continue;
          b[w][i][j] = static_cast<float>((5 * i * i + 2 * j + w) % 13 - 6);
          c[w][i][j] = static_cast<float>(100 * i + j + w);
        }
    std::vector<Fragments> sent(64);
    for (int thread = 0; thread < 64; ++thread) {
      const int w = thread / 32, lane = thread % 32;
      Fragments& to = sent[static_cast<std::size_t>(thread)];
      to = {};
      for (int i = 0; i < 8; ++i) {
        const auto [row, k] = a_element(lane, i);
        to.a.pair[i / 2] |= bits_of<T>(a[w][row][k]) << (16 * (i % 2));
      }
      for (int i = 0; i < 4; ++i) {
        const auto [k, column] = b_element(lane, i);
        to.b.pair[i / 2] |= bits_of<T>(b[w][k][column]) << (16 * (i % 2));
        const auto [row, of_c] = c_element(lane, i);
        to.c.value[i] = c[w][row][of_c];
      }
    }
    Stream stream;
    DeviceArray<Fragments> warps(sent);
    cuda_sim::launch_kernel("multiply", multiply<T>, 1, 64, 0, stream, warps.get());
    const std::vector<Fragments> found = warps.read(stream);
    for (int thread = 0; thread < 64; ++thread)
      for (int i = 0; i < 4; ++i) {
        const int w = thread / 32;
        const auto [row, column] = c_element(thread % 32, i);
        float sum = c[w][row][column];
        for (int k = 0; k < 16; ++k) sum += a[w][row][k] * b[w][k][column];
        ASSERT_EQ(found[static_cast<std::size_t>(thread)].c.value[i], sum)
            << "thread " << thread << " element " << i;
      }
  }
}

// Row 0 times column 0: 2²⁰ - 2²⁰ + 14 · 2⁻¹², of which what is added between the first two is
// lost.
float rounded_sum(std::uint64_t order) {
  cuda_sim::reset({.tensor_sums = order});
  const auto value = [](int k) { return k < 2 ? 1024.0f : 0x1p-6f; };
  std::vector<Fragments> sent(32);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 8; ++i) {
      Fragments& to = sent[static_cast<std::size_t>(lane)];
      const int k = a_element(lane, i).column;
      to.a.pair[i / 2] |= bits_of<__half>(k == 1 ? -value(k) : value(k)) << (16 * (i % 2));
      if (i < 4)
        to.b.pair[i / 2] |= bits_of<__half>(value(b_element(lane, i).row)) << (16 * (i % 2));
    }
  Stream stream;
  DeviceArray<Fragments> warps(sent);
  cuda_sim::launch_kernel("multiply", multiply<__half>, 1, 32, 0, stream, warps.get());
  return warps.read(stream)[0].c.value[0];
}

TEST_F(Tensor, SumsAreInTheOrderOfTheConfiguration) {
  EXPECT_EQ(rounded_sum(0), 14 * 0x1p-12f);
  EXPECT_EQ(rounded_sum(1), 14 * 0x1p-12f);
  EXPECT_EQ(rounded_sum(4), 10 * 0x1p-12f);
  setenv("STAGECOACH_CUDA_SIM_SEED", "7", 1);
  EXPECT_EQ(cuda_sim::config_from_environment().tensor_sums, 7u);
  unsetenv("STAGECOACH_CUDA_SIM_SEED");
}

TEST_F(Tensor, HalvesMultiplyAsTheLayoutSays) {
  products_of_two_warps<__half>();
}
TEST_F(Tensor, Bfloat16sMultiplyAsTheLayoutSays) {
  products_of_two_warps<__nv_bfloat16>();
}

// PTX ISA, mma.m16n8k8, "for .f16": a has elements a0 … a3, b b0 and b1; c as above.
struct HalfDepth {
  std::uint32_t a[2], b[1];
  float c[4];
};
__global__ void multiply_half_depth(HalfDepth* lanes) {
  HalfDepth& own = lanes[threadIdx.x];
  cuda_sim::mma_m16n8k8(own.a, own.b, own.c);
}

TEST_F(Tensor, ProductsOfHalfTheDepthAreAsTheLayoutSays) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    cuda_sim::reset({.seed = seed, .capability = 75});
    float a[16][8], b[8][8];
    for (int i = 0; i < 16; ++i)
      for (int k = 0; k < 8; ++k) {
        a[i][k] = static_cast<float>((7 * i + 3 * k * k) % 11 - 5);
        if (i < 8) b[k][i] = static_cast<float>((5 * k * k + 2 * i) % 13 - 6);
      }
    std::vector<HalfDepth> sent(32);
    for (int lane = 0; lane < 32; ++lane) {
      HalfDepth& to = sent[static_cast<std::size_t>(lane)];
      to = {};
      const int group = lane >> 2, in_group = lane % 4;
      for (int i = 0; i < 4; ++i)
        to.a[i / 2] |= bits_of<__half>(a[i < 2 ? group : group + 8][in_group * 2 + (i & 1)])
                       << (16 * (i % 2));
      for (int i = 0; i < 2; ++i)
        to.b[0] |= bits_of<__half>(b[in_group * 2 + i][group]) << (16 * i);
      for (int i = 0; i < 4; ++i) to.c[i] = static_cast<float>(100 * lane + i);
    }
    Stream stream;
    DeviceArray<HalfDepth> lanes(sent);
    cuda_sim::launch_kernel("multiply_half_depth", multiply_half_depth, 1, 32, 0, stream,
                            lanes.get());
    const std::vector<HalfDepth> found = lanes.read(stream);
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        const auto [row, column] = c_element(lane, i);
        auto sum = static_cast<float>(100 * lane + i);
        for (int k = 0; k < 8; ++k) sum += a[row][k] * b[k][column];
        ASSERT_EQ(found[static_cast<std::size_t>(lane)].c[i], sum)
            << "lane " << lane << " element " << i;
      }
  }
}

__global__ void multiply_nothing(int*) {
  MatrixC c{};
  stagecoach::cuda::multiply_add<__half>(MatrixA{}, MatrixB{}, c);
}
__global__ void copy_nothing(int* memory) {
  stagecoach::cuda::copy_async(cuda_sim::shared_memory(), memory, true);
}

TEST_F(Tensor, WhatTheCapabilityDoesNotHaveFailsTheDevice) {
  for (const auto kernel : {multiply_nothing, copy_nothing})
    for (const int capability : {75, 80}) {
      cuda_sim::reset({.capability = capability});
      Stream stream;
      DeviceArray<int> memory(64);
      cuda_sim::launch_kernel("newer", kernel, 1, 32, 512, stream, memory.get());
      EXPECT_EQ(cudaDeviceSynchronize(),
                capability < 80 ? cudaErrorIllegalInstruction : cudaSuccess);
      if (capability < 80) {
        EXPECT_TRUE(message_has("needs sm_80, the device is sm_75"));
      }
    }
  cuda_sim::reset({});
}

// 32 rows of 8 elements, whose values are their indices; lane l names row l of them.
template <bool kTransposed>
__global__ void load(std::uint32_t* out) {
  auto* const elements = static_cast<std::uint16_t*>(cuda_sim::shared_memory());
  for (unsigned i = threadIdx.x; i < 256; i += 32) elements[i] = static_cast<std::uint16_t>(i);
  __syncthreads();
  std::uint32_t got[4];
  stagecoach::cuda::load_matrices<kTransposed>(got, elements + 8 * threadIdx.x);
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + static_cast<unsigned>(i)] = got[i];
}

TEST_F(Tensor, LdmatrixGivesRowsOrColumns) {
  for (const bool transposed : {false, true})
    for (std::uint64_t seed = 0; seed < 10; ++seed) {
      cuda_sim::reset({.seed = seed});
      Stream stream;
      DeviceArray<std::uint32_t> out(128);
      cuda_sim::launch_kernel("load", transposed ? load<true> : load<false>, 1, 32, 512, stream,
                              out.get());
      const std::vector<std::uint32_t> found = out.read(stream);
      for (unsigned lane = 0; lane < 32; ++lane)
        for (unsigned matrix = 0; matrix < 4; ++matrix)
          for (unsigned i = 0; i < 2; ++i) {
            const unsigned along = lane % 4 * 2 + i, across = lane >> 2;
            const unsigned row = transposed ? along : across, column = transposed ? across : along;
            EXPECT_EQ(found[lane * 4 + matrix] >> (16 * i) & 0xffff, 64 * matrix + 8 * row + column)
                << "lane " << lane << " matrix " << matrix << (transposed ? ", transposed" : "");
          }
    }
}

__global__ void load_misaligned(int*) {
  std::uint32_t got[4];
  stagecoach::cuda::load_matrices<false>(
      got, static_cast<std::uint16_t*>(cuda_sim::shared_memory()) + threadIdx.x);
}
__global__ void load_global(int* memory) {
  std::uint32_t got[4];
  stagecoach::cuda::load_matrices<false>(got, memory);
}
__global__ void copy_beyond(int* memory) {
  stagecoach::cuda::copy_async(static_cast<std::byte*>(cuda_sim::shared_memory()) + 512, memory,
                               true);
}
__global__ void mma_and_ldmatrix(int*) {
  MatrixA a{};
  MatrixC c{};
  if (threadIdx.x % 2 == 0)
    stagecoach::cuda::multiply_add<__half>(a, MatrixB{}, c);
  else
    stagecoach::cuda::load_matrices<false>(a.pair, cuda_sim::shared_memory());
}
__global__ void halves_and_bfloat16s(int*) {
  MatrixC c{};
  if (threadIdx.x % 2 == 0)
    stagecoach::cuda::multiply_add<__half>(MatrixA{}, MatrixB{}, c);
  else
    stagecoach::cuda::multiply_add<__nv_bfloat16>(MatrixA{}, MatrixB{}, c);
}

// .aligned: all lanes execute the same instruction.
__global__ void two_products(int*) {
  MatrixA a{};
  MatrixB b{};
  MatrixC c{};
  if (threadIdx.x < 16)
    stagecoach::cuda::multiply_add<__half>(a, b, c);
  else
    stagecoach::cuda::multiply_add<__half>(a, b, c);
}
__global__ void two_loads(int*) {
  std::uint32_t to[4];
  if (threadIdx.x < 16)
    stagecoach::cuda::load_matrices<false>(to, cuda_sim::shared_memory());
  else
    stagecoach::cuda::load_matrices<false>(to, cuda_sim::shared_memory());
}

TEST_F(Tensor, WrongUseFailsTheDevice) {
  struct Case {
    const char* name;
    void (*kernel)(int*);
    cudaError_t error;
    const char* text;
  };
  for (const Case& c :
       {Case{"load_misaligned", load_misaligned, cudaErrorMisalignedAddress, "multiple of 16"},
        Case{"load_global", load_global, cudaErrorIllegalAddress, "ldmatrix"},
        Case{"copy_beyond", copy_beyond, cudaErrorIllegalAddress, "cp.async"},
        Case{"mma_and_ldmatrix", mma_and_ldmatrix, cudaErrorLaunchFailure, "ldmatrix"},
        Case{"two_products", two_products, cudaErrorLaunchFailure, "mma"},
        Case{"two_loads", two_loads, cudaErrorLaunchFailure, "ldmatrix"},
        Case{"halves_and_bfloat16s", halves_and_bfloat16s, cudaErrorLaunchFailure, "mma"}}) {
    for (std::uint64_t seed = 0; seed < 5; ++seed) {
      cuda_sim::reset({.seed = seed});
      Stream stream;
      DeviceArray<int> memory(64);
      cuda_sim::launch_kernel(c.name, c.kernel, 1, 32, 512, stream, memory.get());
      EXPECT_EQ(cudaDeviceSynchronize(), c.error) << c.name;
      EXPECT_TRUE(message_has(std::string("kernel ") + c.name));
      EXPECT_TRUE(message_has(c.text));
    }
  }
  cuda_sim::reset({});
}

// Two groups of copies; the sum of the first is wanted while the second may be under way.
template <int kLatest>
__global__ void copies(const float4* x, float* out) {
  auto* const own = static_cast<float4*>(cuda_sim::shared_memory()) + 2 * threadIdx.x;
  stagecoach::cuda::copy_async(own, x + threadIdx.x, true);
  stagecoach::cuda::end_copies();
  stagecoach::cuda::copy_async(own + 1, x + threadIdx.x, false);
  stagecoach::cuda::end_copies();
  stagecoach::cuda::wait_for_copies<kLatest>();
  out[threadIdx.x] = own->x + own->y + own->z + own->w;
  stagecoach::cuda::wait_for_copies<0>();
  out[threadIdx.x] += own[1].x + own[1].y + own[1].z + own[1].w;
}

template <int kLatest>
int wrong_copies() {
  int wrong = 0;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<float4> x(std::vector<float4>(32, make_float4(1, 2, 3, 4)));
    DeviceArray<float> out(32);
    cuda_sim::launch_kernel("copies", copies<kLatest>, 1, 32, 1024, stream, x.get(), out.get());
    for (const float sum : out.read(stream)) wrong += sum != 10.0f;
  }
  return wrong;
}

TEST_F(Tensor, CopiesArriveWhenTheyAreWaitedForAndNotReliablyBefore) {
  EXPECT_EQ(wrong_copies<0>(), 0);
  EXPECT_EQ(wrong_copies<1>(), 0);
  EXPECT_GT(wrong_copies<2>(), 0);
}

}  // namespace
