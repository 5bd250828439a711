// What a read that went wrong means to the user: the same words for weights that stream and for
// those that are loaded.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "base/error.h"
#include "stager/read_queue.h"

namespace stagecoach {

// What was read, as errors name it, and how to repair it.
struct ReadSubject {
  const std::string& name;
  const std::string& hint;
};

// Throws resource_error for a read error, data_error when the file ended before `expected` bytes.
void check_completion(const ReadSubject& subject, const ReadCompletion& completion,
                      std::int64_t offset, std::int64_t expected);

Error stalled_disk(const std::string& name, std::chrono::milliseconds stall);

}  // namespace stagecoach
