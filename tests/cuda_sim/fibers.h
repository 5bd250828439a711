// Runs the threads of one block as fibers, on the calling OS thread. They switch at barriers, warp
// collectives and, by chance, at atomics; what runs next is drawn from the seed. A fiber whose
// thread has ended goes on with the next one, so a kernel that never synchronises costs a call a
// thread.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "driver_types.h"
#include "grid_writes.h"
#include "memory.h"
#include "random.h"
#include "vector_types.h"

namespace cuda_sim {

struct BlockJob {
  const std::function<void()>* body = nullptr;
  dim3 grid, block;
  uint3 index{};
  std::size_t shared_bytes = 0;
  const DeviceMemory* memory = nullptr;  // of a kernel's device: what it may access
  GridWrites* writes = nullptr;          // of its grid; null: not recorded
};

struct BlockFailure {
  cudaError_t error = cudaSuccess;
  std::string what;  // "thread (3,0,0): …"
};

// After a failure the threads that had not ended are abandoned, destructors included.
BlockFailure run_block(const BlockJob& job, Random& random);

std::uint64_t fiber_switches();

// For the fault handler: whether a block runs, and on which OS thread.
bool running_block();
pthread_t block_thread();
// Where to go on after a fault in a block: a function that does not return, and a stack for it.
struct Escape {
  void (*function)();
  void* stack_top;
};
Escape escape_from_block(cudaError_t error, std::string what);
// "the guard behind 1024 bytes of shared memory", a fiber's stack; or nothing.
std::string describe_block_address(const void* address);

}  // namespace cuda_sim
