#include "stager/read_queue.h"

#include <cstdlib>

#include "base/error.h"

namespace stagecoach {

std::unique_ptr<ReadQueue> make_read_queue(int depth) {
  const char* variable = std::getenv("STAGECOACH_IO");
  const std::string wanted = variable == nullptr ? "" : variable;
  if (wanted.empty() || wanted == "io_uring") {
    if (auto queue = make_uring_queue(depth)) return queue;
    if (!wanted.empty())
      throw resource_error("STAGECOACH_IO asks for io_uring, which this kernel or build lacks",
                           "leave it out, or STAGECOACH_IO=pread");
    return make_pread_queue(depth);
  }
  if (wanted == "pread" || wanted == "buffered") return make_pread_queue(depth);
  throw usage_error(
      fmt::format("STAGECOACH_IO is '{}', expected io_uring, pread or buffered", wanted));
}

}  // namespace stagecoach
