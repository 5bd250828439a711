// Reads under way: the seam between staging and the disk. io_uring where the kernel allows it, a
// pool of threads where not, and a fake one in tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/clock.h"

namespace stagecoach {

struct ReadRequest {
  int descriptor = -1;
  std::int64_t offset = 0;
  std::span<std::byte> destination;
  bool drop_behind = false;  // went through the page cache, which should not keep it
  std::uint64_t tag = 0;     // comes back with the completion
};

struct ReadCompletion {
  std::uint64_t tag = 0;
  std::int64_t bytes = 0;  // fewer than asked for: the file ends there
  int error = 0;           // errno, or 0
};

// For one thread. Destroying a queue gives up on reads that the disk does not finish.
class ReadQueue {
 public:
  virtual ~ReadQueue() = default;
  virtual const char* name() const = 0;  // "io_uring", "pread"
  // Reads that may be under way at once; submit() is for when fewer are.
  virtual int depth() const = 0;
  virtual void submit(const ReadRequest& request) = 0;
  // Some completed read; nullopt at the deadline. Completions come in any order.
  virtual std::optional<ReadCompletion> wait(Deadline deadline) = 0;
};

// io_uring; null where the kernel or the build has none, or forbids it.
std::unique_ptr<ReadQueue> make_uring_queue(int depth);
// A thread per read under way.
std::unique_ptr<ReadQueue> make_pread_queue(int depth);

// The better of the two that works here, or what STAGECOACH_IO names ("io_uring", "pread";
// "buffered" is pread through the page cache). Throws usage_error for another name, resource_error
// where the named one does not work.
std::unique_ptr<ReadQueue> make_read_queue(int depth);

}  // namespace stagecoach
