// The one way in which kernels are started, so that the same sources serve nvcc and the simulated
// runtime of tests/cuda_sim, where they are plain C++.
//
// Kernels here have no static __shared__ arrays: what a block shares is one struct, whose size goes
// into the launch and whose address is shared_memory<T>(). That is what lets the simulation fill it
// with rubbish before each block and put a guard page behind it.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace stagecoach::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// Of shared memory; a kernel that wants more has to say so before.
inline constexpr std::size_t kPlainSharedBytes = 48 * 1024;

struct LaunchShape {
  dim3 grid;
  unsigned threads = 0;  // of a block
  std::size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
};

// Errors here come again from the launch.
template <typename... Parameters>
void allow_shared(void (*kernel)(Parameters...), std::size_t bytes) {
  if (bytes > kPlainSharedBytes)
    (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(bytes));
}

// Queues kernel(arguments…) on the shape's stream. Errors are those of cudaGetLastError().
#ifdef STAGECOACH_CUDA_SIM
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
            const Arguments&... arguments) {
  allow_shared(kernel, shape.shared_bytes);
  cuda_sim::launch_kernel(name, kernel, shape.grid, dim3(shape.threads), shape.shared_bytes,
                          shape.stream, static_cast<Parameters>(arguments)...);
}

template <typename T>
__device__ T* shared_memory() {
  return static_cast<T*>(cuda_sim::shared_memory());
}
#else
template <typename... Parameters, typename... Arguments>
void launch(const char*, void (*kernel)(Parameters...), const LaunchShape& shape,
            const Arguments&... arguments) {
  allow_shared(kernel, shape.shared_bytes);
  // Version 14 of clang-format takes <<<…>>> for shifts.
  // clang-format off
  kernel<<<shape.grid, shape.threads, shape.shared_bytes, shape.stream>>>(
      static_cast<Parameters>(arguments)...);
  // clang-format on
}

template <typename T>
__device__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char block_memory[];
  return reinterpret_cast<T*>(block_memory);
}
#endif

constexpr unsigned divide_up(std::int64_t a, std::int64_t b) {
  return static_cast<unsigned>((a + b - 1) / b);
}

}  // namespace stagecoach::cuda
