// Tensor cores: products of small matrices that the 32 lanes of a warp hold together, each a few
// elements (PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix"); and 16-byte copies into
// shared memory that run beside what their thread does. All lanes of a warp call together.
//
// Their asm is volatile, as CUTLASS's is: the compiler, which does not know that all lanes take
// part, may neither drop one whose result a lane does not use nor move it into a branch.
//
// Lane l = 4 g + t holds pairs of neighbouring 16-bit elements, the lower one in the lower half:
//
//   a (16 rows, 16 k)      pair[0]  row g,      k 2t, 2t + 1
//                          pair[1]  row g + 8,  k 2t, 2t + 1
//                          pair[2]  row g,      k 2t + 8, 2t + 9
//                          pair[3]  row g + 8,  k 2t + 8, 2t + 9
//   b (16 k, 8 columns)    pair[0]  k 2t, 2t + 1, column g
//                          pair[1]  k 2t + 8, 2t + 9, column g
//   c (16 rows, 8 columns), float32
//                          value[0], value[1]  row g, columns 2t, 2t + 1
//                          value[2], value[3]  row g + 8, the same columns
//
// So two neighbouring c, rounded, are an a: pair[0] of the first's value[0] and value[1], pair[1]
// of its others, pair[2] and pair[3] of the second's.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch.h"
#ifdef STAGECOACH_CUDA_SIM
#include <cuda_sim_tensor.h>
#endif

// All lanes of a warp have to come to a product or a load of matrices at one place of the kernel
// (.aligned); the simulation is told which.
#ifdef STAGECOACH_CUDA_SIM
#define STAGECOACH_PLACE \
  , [[maybe_unused]] cuda_sim::Place place = {__builtin_FILE(), __builtin_LINE()}
#else
#define STAGECOACH_PLACE
#endif

namespace stagecoach::cuda {

struct alignas(16) MatrixA {
  std::uint32_t pair[4];
};
struct MatrixB {
  std::uint32_t pair[2];
};
struct MatrixC {
  float value[4];
};

__device__ inline std::uint32_t half_bits(__half x) {
  return __half_as_ushort(x);
}

// c += a · b, of T __half or __nv_bfloat16, with sums in float32. No bfloat16 before compute
// capability 8.0.
template <typename T>
__device__ void multiply_add(const MatrixA& a, const MatrixB& b, MatrixC& c STAGECOACH_PLACE) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
#if defined(STAGECOACH_CUDA_SIM) && __CUDA_ARCH__ >= 800
  cuda_sim::mma_m16n8k16(kHalf ? cuda_sim::TensorType::kF16 : cuda_sim::TensorType::kBF16, a.pair,
                         b.pair, c.value, place);
#elif __CUDA_ARCH__ >= 800
  if constexpr (kHalf)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]),
          "r"(b.pair[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
        : "r"(a.pair[0]), "r"(a.pair[1]), "r"(a.pair[2]), "r"(a.pair[3]), "r"(b.pair[0]),
          "r"(b.pair[1]));
#else
  if constexpr (kHalf) {
#pragma unroll
    for (int half = 0; half < 2; ++half)  // of k
#ifdef STAGECOACH_CUDA_SIM
      cuda_sim::mma_m16n8k8({a.pair[2 * half], a.pair[2 * half + 1]}, {b.pair[half]}, c.value,
                            place);
#else
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
          "{%0, %1, %2, %3};"
          : "+f"(c.value[0]), "+f"(c.value[1]), "+f"(c.value[2]), "+f"(c.value[3])
          : "r"(a.pair[2 * half]), "r"(a.pair[2 * half + 1]), "r"(b.pair[half]));
#endif
  } else {
    __trap();
  }
#endif
}

// Four matrices of 8 x 8 16-bit elements from shared memory; lane l names row l % 8 of matrix
// l / 8, 16 bytes at a multiple of 16. Lane 4 g + t gets of matrix i, in to[i], columns 2t and
// 2t + 1 of row g; kTransposed: rows 2t and 2t + 1 of column g.
template <bool kTransposed>
__device__ void load_matrices(std::uint32_t (&to)[4], const void* row STAGECOACH_PLACE) {
#ifdef STAGECOACH_CUDA_SIM
  cuda_sim::ldmatrix_x4(kTransposed, to, row, place);
#else
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
#endif
}

#undef STAGECOACH_PLACE

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
inline constexpr bool kCopiesAreAsynchronous = false;
#else
inline constexpr bool kCopiesAreAsynchronous = true;
#endif

// 16 bytes from global to shared memory, or zeros if not `there`; both addresses are multiples of
// 16. They have arrived for this thread after wait_for_copies, for others after a barrier behind
// it. Before compute capability 8.0 the thread copies them itself.
__device__ inline void copy_async(void* shared, const void* global, bool there) {
#if defined(STAGECOACH_CUDA_SIM) && __CUDA_ARCH__ >= 800
  cuda_sim::copy_async(shared, global, there ? 16 : 0);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(shared))), "l"(global),
                 "r"(there ? 16 : 0)
               : "memory");
#else
  *static_cast<uint4*>(shared) = there ? *static_cast<const uint4*>(global) : uint4{};
#endif
}

// Ends a group of copies.
__device__ inline void end_copies() {
#if defined(STAGECOACH_CUDA_SIM) && __CUDA_ARCH__ >= 800
  cuda_sim::commit_copies();
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of this thread but the latest kLatest.
template <int kLatest>
__device__ void wait_for_copies() {
#if defined(STAGECOACH_CUDA_SIM) && __CUDA_ARCH__ >= 800
  cuda_sim::wait_copies(kLatest);
#elif __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" : : "n"(kLatest) : "memory");
#endif
}

}  // namespace stagecoach::cuda
