#include "backend/cpu/cpu_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/byte_size.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::size_t kAlignment = 64;
// From here on a mapping: a budget counts what is resident, and the allocator might keep freed
// blocks.
constexpr std::size_t kMapFrom = std::size_t{1} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

[[noreturn]] void throw_exhausted(std::int64_t bytes) {
  throw resource_error(
      fmt::format("cannot allocate {} of memory: {}", format_bytes(bytes), std::strerror(errno)),
      "use more ranks, or a smaller weight type");
}

}  // namespace

std::byte* allocate_zeroed(std::int64_t bytes) {
  if (bytes == 0) return nullptr;
  STAGECOACH_CHECK(bytes > 0);
  const auto size = static_cast<std::size_t>(bytes);
  if (size >= kMapFrom) {
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw_exhausted(bytes);
    // Weights are read in long streams: fewer address translations. Only advice, so no check.
    if (size >= kHugePage) ::madvise(data, size, MADV_HUGEPAGE);
    return static_cast<std::byte*>(data);
  }
  void* data = std::aligned_alloc(kAlignment, (size + kAlignment - 1) / kAlignment * kAlignment);
  if (data == nullptr) throw_exhausted(bytes);
  std::memset(data, 0, size);
  return static_cast<std::byte*>(data);
}

void free_zeroed(std::byte* data, std::int64_t bytes) {
  if (static_cast<std::size_t>(bytes) >= kMapFrom)
    ::munmap(data, static_cast<std::size_t>(bytes));
  else
    std::free(data);
}

}  // namespace stagecoach
