// What the engine computes at once: rows of hidden state, grouped into runs of consecutive
// positions.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "timeline/timeline.h"

namespace stagecoach {

using SequenceId = std::int64_t;
using TokenId = std::int32_t;

// Consecutive positions of one sequence. Rows of a batch are its runs, one after the other.
struct TokenRun {
  SequenceId sequence = 0;
  std::int64_t position = 0;  // of the first token
  std::vector<TokenId> ids;   // the tokens; their number is the number of rows
  // Tokens whose probability after each row is wanted (score): empty, or one per row, -1 for none.
  std::vector<TokenId> targets;
  bool sample = false;  // draw the next token after the last row

  std::int64_t count() const { return static_cast<std::int64_t>(ids.size()); }

  template <class Archive>
  void serialize(Archive& archive) {
    archive(sequence, position, ids, targets, sample);
  }
};

// What a rank notes beside its spans: which micro-batch, pass and phase it is computing.
struct BatchLabel {
  std::int64_t micro_batch = -1;
  std::int64_t pass = 0;
  Phase phase = Phase::kNone;
};

inline std::int64_t total_rows(std::span<const TokenRun> runs) {
  std::int64_t rows = 0;
  for (const TokenRun& run : runs) rows += run.count();
  return rows;
}

}  // namespace stagecoach
