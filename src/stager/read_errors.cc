#include "stager/read_errors.h"

#include <cstring>

namespace stagecoach {

void check_completion(const ReadSubject& subject, const ReadCompletion& completion,
                      std::int64_t offset, std::int64_t expected) {
  if (completion.error != 0)
    throw resource_error(fmt::format("{}: cannot read {} bytes at offset {}: {}", subject.name,
                                     expected, offset, std::strerror(completion.error)),
                         subject.hint);
  if (completion.bytes != expected)
    throw data_error(fmt::format("{} is truncated: expected {} bytes at offset {}, found {}",
                                 subject.name, expected, offset, completion.bytes),
                     subject.hint);
}

Error stalled_disk(const std::string& name, std::chrono::milliseconds stall) {
  return resource_error(
      fmt::format("{}: the disk has given nothing for {:.0f} s", name,
                  std::chrono::duration<double>(stall).count()),
      "check the disk (dmesg, smartctl); --disk-timeout allows a slow one more time");
}

}  // namespace stagecoach
