#include "fibers.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <boost/context/detail/fcontext.hpp>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "block_state.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace cuda_sim {

BlockState block_state;
constinit thread_local bool runs_block = false;

namespace {

namespace context = boost::context::detail;

// Tops of stacks differ by less than this, or all of them would share a few lines of the cache.
constexpr std::size_t kColours = 4096;
constexpr std::size_t kSharedCanary = 256;  // before the block's shared memory
// Of a block in which nothing else can run: it waits for something that never comes.
constexpr std::uint64_t kMaxIdleYields = 100'000'000;

std::byte* map_stack() {
  void* const pages = mmap(nullptr, kStackSpan, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) {
    fmt::print(stderr, "cuda_sim: no memory for the stack of a simulated thread\n");
    std::abort();
  }
  mprotect(pages, kStackGuard, PROT_NONE);
  return static_cast<std::byte*>(pages);
}

struct Fiber {
  void* context = nullptr;
  std::byte* stack = nullptr;  // a guard first
  std::byte* top = nullptr;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> idle;
  std::array<Fiber*, kMaxThreads> of_thread{};  // nullptr: has not started
  Fiber caller;
  Fiber* current = nullptr;
  std::byte* shared = nullptr;  // kSharedReserve bytes between guards
  std::byte* emergency_stack = nullptr;
  BlockFailure failure;
  std::uint64_t switches = 0;
  std::uint64_t idle_yields = 0;
  pthread_t thread{};
};
Machine machine;

void fiber_main(context::transfer_t from);

void switch_to(Fiber* to) {
  Fiber* const from = machine.current;
  machine.current = to;
  block_state.stack = to->stack;
  ++machine.switches;
  if (to->context == nullptr)
    to->context = context::make_fcontext(to->top, kStackBytes - kColours, fiber_main);
  const context::transfer_t back = context::jump_fcontext(to->context, from);
  static_cast<Fiber*>(back.data)->context = back.fctx;
}

Fiber* take_fiber() {
  if (machine.idle.empty()) {
    machine.fibers.push_back(std::make_unique<Fiber>());
    Fiber* const fiber = machine.fibers.back().get();
    fiber->stack = map_stack();
    fiber->top = fiber->stack + kStackSpan - machine.fibers.size() * 192 % kColours;
    return fiber;
  }
  Fiber* const fiber = machine.idle.back();
  machine.idle.pop_back();
  return fiber;
}

// Takes a thread off the ready list, which is not empty. Some blocks prefer some warps, so that one
// runs far ahead of another.
int pick() {
  BlockState& state = block_state;
  std::uint32_t chosen = state.random->below(state.ready_count);
  for (int rivals = state.hasty ? 3 : 0; rivals > 0; --rivals) {
    const std::uint32_t rival = state.random->below(state.ready_count);
    if (state.warps[state.ready[rival] / 32].haste > state.warps[state.ready[chosen] / 32].haste)
      chosen = rival;
  }
  const int thread = state.ready[chosen];
  state.ready[chosen] = state.ready[--state.ready_count];
  return thread;
}

void become(int thread) {
  block_state.current = thread;
  threadIdx = block_state.indices[static_cast<std::size_t>(thread)];
}

// What this fiber does when its thread has ended: the next one, here if it has not started.
void fiber_main(context::transfer_t from) {
  static_cast<Fiber*>(from.data)->context = from.fctx;
  for (;;) {
    (*block_state.body)();
    leave_block();
    Fiber* const self = machine.current;
    if (block_state.ready_count == 0) {
      machine.idle.push_back(self);
      switch_to(&machine.caller);
      continue;  // woken for a thread of another block
    }
    const int next = pick();
    become(next);
    Fiber*& fiber = machine.of_thread[static_cast<std::size_t>(next)];
    if (fiber == nullptr) {
      fiber = self;
      continue;
    }
    machine.idle.push_back(self);
    switch_to(fiber);
  }
}

void prepare_shared(std::size_t bytes) {
  if (machine.shared == nullptr) {
    void* const pages =
        mmap(nullptr, kSharedSpan, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) std::abort();
    block_state.shared_span = static_cast<const std::byte*>(pages);
    machine.shared = static_cast<std::byte*>(pages) + kSharedGuard;
    mprotect(machine.shared, kSharedReserve, PROT_READ | PROT_WRITE);
  }
  const std::size_t rounded = (bytes + 15) / 16 * 16;
  std::byte* const begin = machine.shared + kSharedReserve - rounded;
  block_state.shared = begin;
  block_state.shared_bytes = bytes;
  std::memset(begin - kSharedCanary, 0xa5, kSharedCanary);
  std::memset(begin, 0xff, bytes);
  std::memset(begin + bytes, 0xa5, rounded - bytes);
}

bool shared_intact() {
  const std::byte* const begin = block_state.shared;
  const std::byte* const end = machine.shared + kSharedReserve;
  const auto good = [](std::byte byte) { return byte == std::byte{0xa5}; };
  return std::all_of(begin - kSharedCanary, begin, good) &&
         std::all_of(begin + block_state.shared_bytes, end, good);
}

// A fiber that overflows its stack leaves the fault handler none.
void prepare_alternate_stack() {
  thread_local std::byte* stack = nullptr;
  if (stack != nullptr) return;
  stack_t before{};
  sigaltstack(nullptr, &before);
  stack = map_stack();
  stack_t own{};
  own.ss_sp = stack + kStackGuard;
  own.ss_size = kStackBytes;
  if ((before.ss_flags & SS_DISABLE) != 0) sigaltstack(&own, nullptr);
}

void start_threads(const BlockJob& job, Random& random) {
  BlockState& state = block_state;
  const unsigned threads = job.block.x * job.block.y * job.block.z;
  state.body = job.body;
  state.memory = job.memory;
  state.writes = job.writes;
  state.random = &random;
  if (state.threads != threads || blockDim.x != job.block.x || blockDim.y != job.block.y) {
    for (unsigned t = 0; t < threads; ++t)
      state.indices[t] = {t % job.block.x, t / job.block.x % job.block.y,
                          t / (job.block.x * job.block.y)};
  }
  state.threads = threads;
  state.left = 0;
  state.barrier = {};
  state.ready_count = threads;
  for (unsigned t = 0; t < threads; ++t) state.ready[t] = static_cast<std::uint16_t>(t);
  std::fill_n(machine.of_thread.begin(), threads, nullptr);
  for (unsigned t = 0; t < threads; ++t) {
    state.copies[t].pending.clear();
    state.copies[t].committed = 0;
  }
  state.hasty = random.chance(1, 2);
  for (unsigned w = 0; w * 32 < threads; ++w) {
    state.warps[w] = {};
    state.warps[w].lanes = threads - w * 32 >= 32 ? 0xffffffffu : (1u << (threads - w * 32)) - 1;
    state.warps[w].haste = static_cast<std::uint8_t>(state.hasty ? random.below(256) : 0);
  }
  blockDim = job.block;
  gridDim = job.grid;
  blockIdx = job.index;
  machine.idle_yields = 0;
  machine.failure = {};
}

// AddressSanitizer marks what lies between a frame's variables until the frame returns.
void forget_frames([[maybe_unused]] std::byte* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack + kStackGuard, kStackBytes);
#endif
}

// Threads that did not end keep nothing: their stacks start anew.
void abandon_fibers() {
  machine.idle.clear();
  for (const auto& fiber : machine.fibers) {
    fiber->context = nullptr;
    forget_frames(fiber->stack);
    machine.idle.push_back(fiber.get());
  }
}

[[noreturn]] void escape() {
  switch_to(&machine.caller);
  __builtin_unreachable();
}

}  // namespace

void switch_thread() {
  BlockState& state = block_state;
  if (state.ready_count == 0) {
    fail_block(cudaErrorLaunchFailure, describe_waiting());
  }
  const int self = state.current;
  const int next = pick();
  if (next == self) return;
  become(next);
  Fiber*& fiber = machine.of_thread[static_cast<std::size_t>(next)];
  if (fiber == nullptr) fiber = take_fiber();
  switch_to(fiber);
}

void fail_block(cudaError_t error, std::string what) {
  machine.failure = {error, std::move(what)};
  escape();
}

BlockFailure run_block(const BlockJob& job, Random& random) {
  start_threads(job, random);
  prepare_shared(job.shared_bytes);
  if (machine.emergency_stack == nullptr) machine.emergency_stack = map_stack();
  machine.thread = pthread_self();
  prepare_alternate_stack();
  machine.current = &machine.caller;
  const int first = pick();
  become(first);
  block_state.active = runs_block = true;
  switch_to(machine.of_thread[static_cast<std::size_t>(first)] = take_fiber());
  block_state.active = runs_block = false;
  const bool all_left = block_state.left == block_state.threads;
  if (machine.failure.error == cudaSuccess && !all_left)
    machine.failure = {cudaErrorLaunchFailure, describe_waiting()};
  if (machine.failure.error != cudaSuccess) {
    abandon_fibers();
    forget_frames(machine.emergency_stack);
  } else if (!shared_intact()) {
    machine.failure = {
        cudaErrorIllegalAddress,
        fmt::format("wrote outside of its {} bytes of shared memory", block_state.shared_bytes)};
  }
  return std::move(machine.failure);
}

std::uint64_t fiber_switches() {
  return machine.switches;
}

bool running_block() {
  return block_state.active;
}

pthread_t block_thread() {
  return machine.thread;
}

Escape escape_from_block(cudaError_t error, std::string what) {
  if (block_state.threads > 1)
    what = fmt::format("thread ({},{},{}): {}", threadIdx.x, threadIdx.y, threadIdx.z, what);
  machine.failure = {error, std::move(what)};
  return {[] { escape(); }, machine.emergency_stack + kStackSpan};
}

std::string describe_block_address(const void* address) {
  const auto* byte = static_cast<const std::byte*>(address);
  const std::byte* const span = block_state.shared_span;
  if (span != nullptr && byte >= span && byte < span + kSharedSpan)
    return fmt::format("{} bytes behind the start of {} bytes of shared memory",
                       byte - block_state.shared, block_state.shared_bytes);
  for (const auto& fiber : machine.fibers)
    if (byte >= fiber->stack && byte < fiber->stack + kStackGuard)
      return fmt::format("overflow of a thread's stack of {} bytes", kStackBytes);
  return {};
}

void* shared_memory() {
  return block_state.shared;
}

void maybe_yield() {
  BlockState& state = block_state;
  if (!state.active || state.threads == 1 || !state.random->chance(1, 8)) return;
  if (state.ready_count == 0) {
    if (++machine.idle_yields > kMaxIdleYields)
      fail_block(cudaErrorLaunchTimeout, "spins on memory that no thread of its block will change");
    return;
  }
  state.ready[state.ready_count++] = static_cast<std::uint16_t>(state.current);
  switch_thread();
}

}  // namespace cuda_sim
