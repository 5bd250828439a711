// What kernels ask of a GPU in PTX and no intrinsic of CUDA C++ has: products on tensor cores,
// matrices from shared memory, asynchronous copies. Lanes hold what the PTX ISA says ("Matrix
// fragments for mma.m16n8k16" and "… mma.m16n8k8", "ldmatrix", "cp.async"), so a wrong layout gives
// wrong results. What the device's compute capability does not have fails the block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_sim_device.h"

namespace cuda_sim {

enum class TensorType : std::uint8_t { kF16, kBF16 };

// c (16, 8) += a (16, 16) · b (16, 8): products exact in float32, added in float32 in the order
// of k that Config::tensor_sums says.
void mma_m16n8k16(TensorType type, const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  float (&c)[4], Place place = {__builtin_FILE(), __builtin_LINE()});
// c (16, 8) += a (16, 8) · b (8, 8), of f16: all that compute capability 7.5 has.
void mma_m16n8k8(const std::uint32_t (&a)[2], const std::uint32_t (&b)[1], float (&c)[4],
                 Place place = {__builtin_FILE(), __builtin_LINE()});
// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
void ldmatrix_x4(bool transposed, std::uint32_t (&to)[4], const void* row,
                 Place place = {__builtin_FILE(), __builtin_LINE()});

// 16 bytes to shared memory: the first `bytes` are copied, the others 0. It is done at once or when
// it is waited for, as the seed says.
void copy_async(void* shared, const void* global, std::size_t bytes,
                Place place = {__builtin_FILE(), __builtin_LINE()});
void commit_copies();
// Until no more than the latest `groups` commits may be under way.
void wait_copies(std::size_t groups);

}  // namespace cuda_sim
