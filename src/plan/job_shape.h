// The size of a job's work, as memory and rounds depend on it: rank 0 knows it, all ranks plan with
// it.
#pragma once

#include <cstdint>

namespace stagecoach {

struct JobShape {
  std::int64_t largest_pass = 1;  // rows that enter at once, at most
  std::int64_t usual_pass = 1;    // rows of the passes that take most of the time
  std::int64_t wanted_rows = 1;   // of them, those whose logits are wanted
  std::int64_t sequences = 1;     // that hold keys and values at once, at most
  std::int64_t positions = 1;     // of the longest of them
  bool forget_kv = false;         // no pass reads the keys of one before it
  std::int64_t passes = 0;        // in all; 0: not known
  std::int64_t prompt_rows = 0;   // in all, as far as is known
  std::int64_t steps = 0;         // that follow, of a row for each sequence, at most
  std::uint64_t work = 0;         // hash of what the job is to do: texts and settings
  std::uint64_t content = 0;      // hash of what its first pass computes

  template <class Archive>
  void serialize(Archive& archive) {
    archive(largest_pass, usual_pass, wanted_rows, sequences, positions, forget_kv, passes,
            prompt_rows, steps, work, content);
  }
};

// Rows of a micro-batch, without --micro-batch; and where all ranks compute on GPUs with room for
// it: below, unpacking weights takes them longer than multiplying.
inline constexpr std::int64_t kUsualMicroBatch = 256, kDeviceMicroBatch = 1024;

// Up to so many rows a pass is one micro-batch, whatever the number of ranks (plan/scheduler.cc).
inline constexpr std::int64_t kOneMicroBatch = 32;

// Rows of a pass whose hidden states, all of them in memory at once, take at most 256 MiB.
inline std::int64_t affordable_pass(std::int64_t hidden_size) {
  return (std::int64_t{256} << 20) / (hidden_size * static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace stagecoach
