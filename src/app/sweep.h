// A timing study over several values of its settings: every combination is a job of its own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "timeline/report.h"

namespace stagecoach {

// The lists of a study. Empty lists stand for what a single run would do.
struct SweepAxes {
  std::vector<std::string> stores;   // with {weights} in them when `weights` has any
  std::vector<std::string> weights;  // names of types: the store of each must hold that type
  std::vector<std::string> windows;
  std::vector<int> threads;
  std::vector<std::int64_t> micro_batches, tokens, batches;
};

// One cell of the cross product.
struct Combination {
  int number = 1;  // counted from 1
  std::string store, weights, windows;
  int threads = 0;  // 0: as many as there are cores for
  std::int64_t micro_batch = 0, tokens = 0, batch = 0;
  // Of the settings that vary: "tokens 512, threads 4"; empty when none does.
  std::string name;
};

// The cross product, stores outermost and batches innermost, so that what is read stays in the page
// cache of a machine that has room. Throws usage_error for a value that stands twice in a list, for
// a {weights} without its list and the other way round.
std::vector<Combination> combinations(const SweepAxes& axes);

// One combination that was run.
struct SweepResult {
  Combination combination;
  std::string weights, windows,
      threads;  // what it came to: of the store, of the plan, of the ranks
  int ranks = 0;
  std::vector<PhaseResult> phases;
  std::vector<LayerRow> rows;
};

// sweep.csv (docs/timing.md): for each combination and phase a row of the whole pass, whose layer
// is empty, followed by one for each layer.
std::string sweep_csv(const std::vector<SweepResult>& results);

}  // namespace stagecoach
