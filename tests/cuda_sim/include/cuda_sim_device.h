// Device side: what a kernel says to its block, its warp and to memory. Threads of a block are
// fibers that switch only here, in an order drawn from the seed, so that a missing barrier shows.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "vector_types.h"

// Of the thread that runs; restored at every switch. One thread runs at a time.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

namespace cuda_sim {

// Same names as the intrinsics, for messages.
enum class BarrierKind : std::uint8_t { kSync, kOr, kAnd, kCount };
enum class WarpKind : std::uint8_t {
  kSync,
  kShfl,
  kShflUp,
  kShflDown,
  kShflXor,
  kBallot,
  kAny,
  kAll,
  kMma,
  kMmaK8,
  kLdmatrix
};

// Where a kernel calls from: barriers at different places are different barriers.
struct Place {
  const char* file;
  unsigned line;
};

int barrier(BarrierKind kind, int predicate, Place place);
// bits: the lane's value; argument: lane, delta or lane mask. A shuffle's type is part of its kind.
std::uint64_t warp_collective(WarpKind kind, unsigned type_bytes, unsigned mask, std::uint64_t bits,
                              unsigned argument, int width, Place place);
// What a whole warp does together, called from one place: `work` runs once, when all 32 lanes are
// there, on what each of them brought, by lane.
using WarpWork = void (*)(void* const* lanes);
void warp_together(WarpKind kind, void* operands, WarpWork work, Place place);
// Fails the block if a kernel on its device could not access this. Compilers call it for the
// sources of kernels; what else accesses memory for a kernel calls it itself.
void check_access(const void* address, std::size_t bytes);
// Fails it, too, if another block of the grid has written this.
void check_write(const void* address, std::size_t bytes);
// Other threads may run here; atomics and fences call it.
void maybe_yield();
[[noreturn]] void refuse(const char* what, Place place);

template <class T>
T shuffle(WarpKind kind, unsigned mask, T value, unsigned argument, int width, Place place) {
  using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;
  static_assert(sizeof(Bits) == sizeof(T));
  return std::bit_cast<T>(static_cast<Bits>(
      warp_collective(kind, sizeof(T), mask, std::bit_cast<Bits>(value), argument, width, place)));
}

// Read, change, write: one step for the other threads, which run one at a time. Blocks may do it to
// one address, so compilers are not to call check_write here.
template <class T, class Change>
__attribute__((no_sanitize("thread"))) T atomic(T* address, Change change) {
  maybe_yield();
  check_access(address, sizeof(T));
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace cuda_sim

// Default arguments take the caller's place.
#define CUDA_SIM_PLACE cuda_sim::Place place = {__builtin_FILE(), __builtin_LINE()}

inline void __syncthreads(CUDA_SIM_PLACE) {
  cuda_sim::barrier(cuda_sim::BarrierKind::kSync, 0, place);
}
inline int __syncthreads_or(int predicate, CUDA_SIM_PLACE) {
  return cuda_sim::barrier(cuda_sim::BarrierKind::kOr, predicate, place);
}
inline int __syncthreads_and(int predicate, CUDA_SIM_PLACE) {
  return cuda_sim::barrier(cuda_sim::BarrierKind::kAnd, predicate, place);
}
inline int __syncthreads_count(int predicate, CUDA_SIM_PLACE) {
  return cuda_sim::barrier(cuda_sim::BarrierKind::kCount, predicate, place);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_SIM_PLACE) {
  cuda_sim::warp_collective(cuda_sim::WarpKind::kSync, 0, mask, 0, 0, 32, place);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_SIM_PLACE) {
  return static_cast<unsigned>(cuda_sim::warp_collective(cuda_sim::WarpKind::kBallot, 0, mask,
                                                         predicate != 0, 0, 32, place));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_SIM_PLACE) {
  return static_cast<int>(
      cuda_sim::warp_collective(cuda_sim::WarpKind::kAny, 0, mask, predicate != 0, 0, 32, place));
}
inline int __all_sync(unsigned mask, int predicate, CUDA_SIM_PLACE) {
  return static_cast<int>(
      cuda_sim::warp_collective(cuda_sim::WarpKind::kAll, 0, mask, predicate != 0, 0, 32, place));
}
// Which lanes happen to be together is no contract: name the lanes.
[[noreturn]] inline unsigned __activemask(CUDA_SIM_PLACE) {
  cuda_sim::refuse("__activemask", place);
}
[[noreturn]] inline void __trap(CUDA_SIM_PLACE) {
  cuda_sim::refuse("__trap", place);
}

#define CUDA_SIM_SHUFFLES(T)                                                                      \
  inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_SIM_PLACE) {        \
    return cuda_sim::shuffle(cuda_sim::WarpKind::kShfl, mask, value, static_cast<unsigned>(lane), \
                             width, place);                                                       \
  }                                                                                               \
  inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,                 \
                          CUDA_SIM_PLACE) {                                                       \
    return cuda_sim::shuffle(cuda_sim::WarpKind::kShflUp, mask, value, delta, width, place);      \
  }                                                                                               \
  inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,               \
                            CUDA_SIM_PLACE) {                                                     \
    return cuda_sim::shuffle(cuda_sim::WarpKind::kShflDown, mask, value, delta, width, place);    \
  }                                                                                               \
  inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_SIM_PLACE) {   \
    return cuda_sim::shuffle(cuda_sim::WarpKind::kShflXor, mask, value,                           \
                             static_cast<unsigned>(lanes), width, place);                         \
  }
CUDA_SIM_SHUFFLES(int)
CUDA_SIM_SHUFFLES(unsigned)
CUDA_SIM_SHUFFLES(long)
CUDA_SIM_SHUFFLES(unsigned long)
CUDA_SIM_SHUFFLES(long long)
CUDA_SIM_SHUFFLES(unsigned long long)
CUDA_SIM_SHUFFLES(float)
CUDA_SIM_SHUFFLES(double)
#undef CUDA_SIM_SHUFFLES
#undef CUDA_SIM_PLACE

// Fences order one thread's accesses for others; here all accesses are in order already.
inline void __threadfence() {
  cuda_sim::maybe_yield();
}
inline void __threadfence_block() {
  cuda_sim::maybe_yield();
}
inline void __threadfence_system() {
  cuda_sim::maybe_yield();
}

#define CUDA_SIM_ATOMIC_ADD(T)                                            \
  inline T atomicAdd(T* address, T value) {                               \
    return cuda_sim::atomic(address, [=](T old) { return old + value; }); \
  }
#define CUDA_SIM_ATOMIC_EXCHANGE(T)                             \
  inline T atomicExch(T* address, T value) {                    \
    return cuda_sim::atomic(address, [=](T) { return value; }); \
  }
#define CUDA_SIM_ATOMIC_COMPARE(T)                                                         \
  inline T atomicMax(T* address, T value) {                                                \
    return cuda_sim::atomic(address, [=](T old) { return old > value ? old : value; });    \
  }                                                                                        \
  inline T atomicMin(T* address, T value) {                                                \
    return cuda_sim::atomic(address, [=](T old) { return old < value ? old : value; });    \
  }                                                                                        \
  inline T atomicCAS(T* address, T compare, T value) {                                     \
    return cuda_sim::atomic(address, [=](T old) { return old == compare ? value : old; }); \
  }
inline int atomicAdd(int* address, int value) {
  // Wraps, as devices do.
  return cuda_sim::atomic(address, [=](int old) {
    return static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
  });
}
CUDA_SIM_ATOMIC_ADD(unsigned)
CUDA_SIM_ATOMIC_ADD(unsigned long long)
CUDA_SIM_ATOMIC_ADD(float)
CUDA_SIM_ATOMIC_ADD(double)
CUDA_SIM_ATOMIC_EXCHANGE(int)
CUDA_SIM_ATOMIC_EXCHANGE(unsigned)
CUDA_SIM_ATOMIC_EXCHANGE(unsigned long long)
CUDA_SIM_ATOMIC_EXCHANGE(float)
CUDA_SIM_ATOMIC_COMPARE(int)
CUDA_SIM_ATOMIC_COMPARE(unsigned)
CUDA_SIM_ATOMIC_COMPARE(unsigned long long)
#undef CUDA_SIM_ATOMIC_ADD
#undef CUDA_SIM_ATOMIC_EXCHANGE
#undef CUDA_SIM_ATOMIC_COMPARE

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}
