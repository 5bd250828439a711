// The kinds of ops: grids of kernels, copies, fills, products, host functions, injected failures.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "stream.h"
#include "vector_types.h"

namespace cuda_sim {

struct Grid {
  std::string name;
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  std::function<void()> body;
  std::vector<const void*> pointers;
};
std::unique_ptr<Work> make_kernel_work(Grid grid);

struct Copy {
  std::byte* target = nullptr;
  const std::byte* source = nullptr;
  std::size_t bytes = 0;
  cudaMemcpyKind kind = cudaMemcpyDefault;
  // Pinned when it was queued: must still be when it runs.
  bool target_pinned = false;
  bool source_pinned = false;
  std::shared_ptr<std::vector<std::byte>> staged = {};  // what `source` points into
  std::string what;
};
std::unique_ptr<Work> make_copy_work(Copy copy);
std::unique_ptr<Work> make_fill_work(void* target, int value, std::size_t bytes);

// Code of the simulator that touches device memory, as if it were a kernel of one thread.
std::unique_ptr<Work> make_device_work(std::string name, std::function<void()> body);
// A node that records an event each time its graph runs. Until then the event is what it was
// before: a program that does not wait for the graph finds the times of the launch before.
std::unique_ptr<Work> make_record_work(cudaEvent_t event);
// Fails its device when it runs.
std::unique_ptr<Work> make_failing_work(cudaError_t error, std::string line);

}  // namespace cuda_sim
