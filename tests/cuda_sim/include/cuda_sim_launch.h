// What kernels/cuda/launch.h calls instead of <<<>>> and of `extern __shared__`.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "driver_types.h"
#include "vector_types.h"

namespace cuda_sim {

// Dynamic shared memory of the running block: as many bytes as the launch asked for, aligned to 16,
// NaN until written. What lies behind the end is a guard page (or, up to the alignment, canaries).
void* shared_memory();

// Queues a grid on a stream; thread_body runs once per thread. `function` identifies the kernel for
// cudaFuncSetAttribute. `pointers` must lie in live device or pinned host memory, or be null, when
// the grid runs. Errors of the configuration show in cudaGetLastError, as after <<<>>>.
void launch(const char* name, const void* function, dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, std::function<void()> thread_body,
            std::vector<const void*> pointers = {});

// Where the running block's arguments lie, which its threads may read.
void arguments_lie_at(const void* arguments, std::size_t bytes);

template <class T>
void add_pointer(std::vector<const void*>& pointers, const T& argument) {
  if constexpr (std::is_pointer_v<T>)
    pointers.push_back(const_cast<const void*>(static_cast<const volatile void*>(argument)));
  (void)pointers, (void)argument;
}

// What each thread of a grid does.
template <class... Parameters>
struct KernelCall {
  void (*kernel)(Parameters...);
  std::tuple<Parameters...> arguments;

  void operator()() const {
    arguments_lie_at(this, sizeof *this);
    std::apply(kernel, arguments);
  }
};

// The usual way: arguments are converted and copied now, as <<<>>> does, and every argument that is
// a raw pointer is checked. Pointers inside structs are not: what they point to is, when touched.
template <class... Parameters, class... Arguments>
void launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                   std::size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "wrong number of kernel arguments");
  static_assert((std::is_trivially_copyable_v<std::remove_cvref_t<Parameters>> && ...),
                "kernel parameters are copied as bytes");
  static_assert((!std::is_reference_v<Parameters> && ...), "kernel parameters are passed by value");
  std::tuple<Parameters...> values{static_cast<Parameters>(std::forward<Arguments>(arguments))...};
  std::vector<const void*> pointers;
  std::apply([&pointers](const auto&... value) { (add_pointer(pointers, value), ...); }, values);
  launch(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes, stream,
         KernelCall<Parameters...>{kernel, values}, std::move(pointers));
}

}  // namespace cuda_sim
