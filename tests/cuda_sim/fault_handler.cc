#include "fault_handler.h"

#include <fmt/format.h>
#include <signal.h>
#include <ucontext.h>

#include "fibers.h"
#include "runtime.h"

namespace cuda_sim {
namespace {

struct sigaction previous_segv, previous_bus, previous_ill;

struct sigaction& previous(int signal) {
  return signal == SIGSEGV ? previous_segv : signal == SIGBUS ? previous_bus : previous_ill;
}

// The handler returns into a function of ours on a stack of ours: no jump out of a handler, so the
// signal mask is as it was.
bool leave_by(const Escape& escape, void* context) {
  auto* const machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  // A function finds its stack at 8 modulo 16: the return address was pushed.
  machine->gregs[REG_RSP] =
      static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(escape.stack_top) - 8);
  machine->gregs[REG_RIP] = static_cast<greg_t>(reinterpret_cast<std::uintptr_t>(escape.function));
  return true;
#elif defined(__aarch64__)
  machine->sp = reinterpret_cast<std::uintptr_t>(escape.stack_top);
  machine->pc = reinterpret_cast<std::uintptr_t>(escape.function);
  return true;
#else
  (void)machine;
  (void)escape;
  return false;
#endif
}

std::string describe(Runtime& state, const void* address) {
  if (const DeviceMemory* memory = state.memory_of(address)) return memory->describe(address);
  const std::string block = describe_block_address(address);
  return block.empty() ? "not an address of this device" : block;
}

void handle(int signal, siginfo_t* info, void* context) {
  Runtime& state = runtime();
  // The thread that runs a block holds the lock; a fault of another thread is its own.
  if (running_block() && block_thread() == pthread_self()) {
    if (signal == SIGILL) {
      if (leave_by(escape_from_block(cudaErrorMisalignedAddress,
                                     "trap: a misaligned access, or another check of the compiler"),
                   context))
        return;
    } else {
      DeviceMemory* const memory = state.memory_of(info->si_addr);
      if (memory != nullptr && memory->open_page(info->si_addr)) return;
      const std::string what =
          fmt::format("access to {}: {}", info->si_addr, describe(state, info->si_addr));
      if (leave_by(escape_from_block(cudaErrorIllegalAddress, what), context)) return;
    }
  } else if (signal != SIGILL && state.memory_of(info->si_addr) != nullptr) {
    fmt::print(stderr, "cuda_sim: host code touches device memory at {}: {}\n", info->si_addr,
               describe(state, info->si_addr));
  }
  sigaction(signal, &previous(signal), nullptr);  // and the access is tried again
}

}  // namespace

void install_fault_handler() {
  static const bool installed = [] {
    struct sigaction action {};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    for (const int signal : {SIGSEGV, SIGBUS, SIGILL})
      sigaction(signal, &action, &previous(signal));
    return true;
  }();
  (void)installed;
}

}  // namespace cuda_sim
