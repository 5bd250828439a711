// A job on a cluster as a discrete-event simulation: the ranks' own Scheduler, with the times of
// the cost model in place of the work. Where plan_cluster adds up, this lets things wait for each
// other.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "plan/planner.h"

namespace stagecoach {

struct SimulatedHost {
  double computing = 0, reading = 0;  // shares of the whole time
};

struct Simulation {
  double time_to_first_token = 0;  // seconds until every sequence has its first token
  double step_seconds = 0;         // from one token of a sequence to its next, on average
  double tokens_per_second = 0;    // of all sequences, from then on
  double seconds = 0;              // of the whole job
  std::int64_t micro_batches = 0;
  std::vector<SimulatedHost> hosts;  // by rank
};

// All of question's sequences come at once and draw all their tokens. `plan` is one of its plans.
// Throws an Error of kind kInterrupted once interrupted() is true.
Simulation simulate(
    const PlanQuestion& question, const ClusterPlan& plan,
    const std::function<bool()>& interrupted = [] { return false; });

}  // namespace stagecoach
