// What kernels read and write. Their sources are compiled with -fsanitize=thread, which calls what
// is below before every access to memory that may be another thread's; that sanitizer's own library
// is not linked. A GPU reaches its own memory, page-locked memory of the host and what belongs to
// the block; an access to anything else works here, on the host, and fails there.
#include <fmt/format.h>
#include <link.h>

#include <algorithm>

#include <vector>

#include "block_state.h"
#include "fibers.h"
#include "runtime.h"

namespace cuda_sim {
namespace {

struct Range {
  const std::byte* begin;
  const std::byte* end;
};

bool within(const void* address, const void* begin, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(begin) <
         bytes;
}

// Constants of the program and its modules: segments that are loaded and cannot be written.
std::vector<Range> constants() {
  std::vector<Range> found;
  dl_iterate_phdr(
      [](dl_phdr_info* module, std::size_t, void* list) {
        for (int n = 0; n < module->dlpi_phnum; ++n) {
          const auto& segment = module->dlpi_phdr[n];
          if (segment.p_type != PT_LOAD && segment.p_type != PT_GNU_RELRO) continue;
          if (segment.p_type == PT_LOAD && (segment.p_flags & PF_W) != 0) continue;
          const auto* const begin =
              reinterpret_cast<const std::byte*>(module->dlpi_addr + segment.p_vaddr);
          static_cast<std::vector<Range>*>(list)->push_back({begin, begin + segment.p_memsz});
        }
        return 0;
      },
      &found);
  return found;
}

bool is_constant(const std::byte* address) {
  static std::vector<Range> known;
  const auto contains = [address](const Range& range) {
    return address >= range.begin && address < range.end;
  };
  if (std::ranges::any_of(known, contains)) return true;
  known = constants();  // modules may have been loaded since
  return std::ranges::any_of(known, contains);
}

bool is_index(const std::byte* address) {
  return within(address, &threadIdx, sizeof threadIdx) ||
         within(address, &blockIdx, sizeof blockIdx) ||
         within(address, &blockDim, sizeof blockDim) || within(address, &gridDim, sizeof gridDim);
}

// Of nearly all accesses. What lies around this memory faults by itself.
bool is_own_memory(const void* address) {
  const BlockState& state = block_state;
  return state.memory->in_range(address) || within(address, state.stack, kStackSpan) ||
         within(address, state.shared_span, kSharedSpan);
}

void check_other_access(const std::byte* address, std::size_t bytes) {
  const BlockState& state = block_state;
  runs_block = false;  // without optimisation, templates of the library call back from here, too
  const bool may = is_index(address) || within(address, state.arguments, state.argument_bytes) ||
                   within(address, state.body, sizeof *state.body) ||
                   runtime().pinned.contains(address, bytes) || is_constant(address);
  runs_block = true;
  if (may) return;
  const DeviceMemory* const other = runtime().memory_of(address);
  fail_block(cudaErrorIllegalAddress,
             fmt::format("thread ({},{},{}): access to {}: {}", threadIdx.x, threadIdx.y,
                         threadIdx.z, static_cast<const void*>(address),
                         other != nullptr ? other->describe(address)
                                          : "not an address of this device, but pageable memory of "
                                            "the host, another thread's, or none"));
}

}  // namespace

void arguments_lie_at(const void* arguments, std::size_t bytes) {
  block_state.arguments = arguments;
  block_state.argument_bytes = bytes;
}

void check_access(const void* address, std::size_t bytes) {
  if (runs_block && block_state.memory != nullptr && !is_own_memory(address))
    check_other_access(static_cast<const std::byte*>(address), bytes);
}

void check_write(const void* address, std::size_t bytes) {
  check_access(address, bytes);
  const BlockState& state = block_state;
  if (!runs_block || state.writes == nullptr || !state.memory->in_range(address)) return;
  const std::uint32_t block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const auto other = state.writes->add(address, bytes, block);
  if (!other) return;
  fail_block(cudaErrorLaunchFailure,
             fmt::format("thread ({},{},{}): writes {}, as block ({},{},{}) does: {}", threadIdx.x,
                         threadIdx.y, threadIdx.z, address, *other % gridDim.x,
                         *other / gridDim.x % gridDim.y, *other / gridDim.x / gridDim.y,
                         state.memory->describe(address)));
}

}  // namespace cuda_sim

// The interface between compilers and the sanitizer's library.
extern "C" {

#define CUDA_SIM_ACCESS(bytes)                        \
  void __tsan_read##bytes(void* address) {            \
    cuda_sim::check_access(address, bytes);           \
  }                                                   \
  void __tsan_write##bytes(void* address) {           \
    cuda_sim::check_write(address, bytes);            \
  }                                                   \
  void __tsan_unaligned_read##bytes(void* address) {  \
    cuda_sim::check_access(address, bytes);           \
  }                                                   \
  void __tsan_unaligned_write##bytes(void* address) { \
    cuda_sim::check_write(address, bytes);            \
  }
CUDA_SIM_ACCESS(1)
CUDA_SIM_ACCESS(2)
CUDA_SIM_ACCESS(4)
CUDA_SIM_ACCESS(8)
CUDA_SIM_ACCESS(16)
#undef CUDA_SIM_ACCESS
void __tsan_read_range(void* address, std::size_t bytes) {
  cuda_sim::check_access(address, bytes);
}
void __tsan_write_range(void* address, std::size_t bytes) {
  cuda_sim::check_write(address, bytes);
}
// Of host code.
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}
