// What fibers.cc (who runs) and collectives.cc (who waits for whom) share about the running block.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda_sim_device.h"
#include "driver_types.h"
#include "grid_writes.h"
#include "memory.h"
#include "random.h"

namespace cuda_sim {

inline constexpr unsigned kMaxThreads = 1024;

struct Collective {
  WarpKind kind;
  unsigned type_bytes;
  unsigned mask;
  unsigned arrived;
  Place place;
  WarpWork work;
};

struct Warp {
  unsigned lanes = 0;  // that exist
  unsigned left = 0;   // of them, those that left the kernel
  std::uint8_t haste = 0;
  unsigned pending_count = 0;
  std::array<Collective, 32> pending;  // their masks are disjoint
};

// cp.async that has not been done yet.
struct AsyncCopy {
  void* to;
  const void* from;
  std::size_t bytes;
  std::size_t group;  // of the thread's commits
};
struct AsyncCopies {
  std::vector<AsyncCopy> pending;
  std::size_t committed = 0;  // groups
};

struct Barrier {
  unsigned arrived = 0;
  BarrierKind kind{};
  Place place{};
  int count = 0;   // of those that arrived, with a predicate
  int result = 0;  // of the last one: all have read it before the next completes
};

struct BlockState {
  bool active = false;
  const std::function<void()>* body = nullptr;
  Random* random = nullptr;
  unsigned threads = 0;
  unsigned left = 0;
  int current = 0;
  bool hasty = false;
  std::uint32_t ready_count = 0;
  std::array<std::uint16_t, kMaxThreads> ready;
  std::array<uint3, kMaxThreads> indices;
  std::array<Warp, kMaxThreads / 32> warps;
  Barrier barrier;
  // Of a thread in a warp collective.
  std::array<std::uint64_t, kMaxThreads> bits;
  std::array<unsigned, kMaxThreads> argument;
  std::array<int, kMaxThreads> width;
  std::array<AsyncCopies, kMaxThreads> copies;
  std::byte* shared = nullptr;
  std::size_t shared_bytes = 0;
  // What else a kernel may access (accesses.cc).
  const std::byte* shared_span = nullptr;  // kSharedSpan bytes: shared memory between guards
  const DeviceMemory* memory = nullptr;    // of its device; null: the block is no kernel's
  const std::byte* stack = nullptr;        // kStackSpan bytes: of the current thread
  const void* arguments = nullptr;
  std::size_t argument_bytes = 0;
  GridWrites* writes = nullptr;  // of its grid; null: not recorded
};
extern BlockState block_state;
// Whether this OS thread runs it; others run host code of the same sources meanwhile. (The model
// saves a call for each access of a kernel.)
extern constinit thread_local bool runs_block __attribute__((tls_model("initial-exec")));

// Of a thread, of which only touched pages count: sanitizers need more than GPUs. A guard comes
// first, and a frame may step over a page.
inline constexpr std::size_t kStackBytes = 256 * 1024;
inline constexpr std::size_t kStackGuard = 64 * 1024;
inline constexpr std::size_t kStackSpan = kStackGuard + kStackBytes;

inline constexpr std::size_t kSharedReserve = 256 * 1024;
inline constexpr std::size_t kSharedGuard = 64 << 20;  // before and behind
inline constexpr std::size_t kSharedSpan = kSharedReserve + 2 * kSharedGuard;

// Gives up the processor; the caller returns when it was put on the ready list and chosen.
void switch_thread();
[[noreturn]] void fail_block(cudaError_t error, std::string what);

// The current thread has ended.
void leave_block();
// "3 of 64 threads wait at __syncthreads (a.cu:12), 61 have left the kernel"
std::string describe_waiting();

}  // namespace cuda_sim
