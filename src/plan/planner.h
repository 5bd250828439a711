// Which host runs which layers, and what that will give: pure functions of sizes and rates. The
// same arithmetic as the ranks' own (plan/residency.h), ahead of the job and for all hosts at once.
// docs/planning.md derives the times.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plan/cost_model.h"
#include "plan/residency.h"
#include "plan/stage_plan.h"

namespace stagecoach {

struct HostPlan {
  std::size_t host = 0;  // in the cluster
  std::int64_t layers = 0;
  Residency residency;              // of them, in the host's memory and on its disk
  std::optional<Residency> device;  // on its GPU; the rest is residency's
  // Beside a GPU, by layer in ring order: the processor computes it from the host's memory, and it
  // is in neither of them.
  std::vector<bool> on_cpu;
  std::int64_t memory = 0;                // bytes that its rank will take
  std::int64_t device_memory = 0;         // of its GPU's
  double disk_seconds = 0;                // that a step waits for its disk at least
  double bus_seconds = 0;                 // and for the bus to its GPU
  double step_seconds = 0;                // of computing, in a step
  Bound step_bound = Bound::kMemoryRate;  // of that
  double prefill_seconds = 0;             // of computing, in the prefill of all prompts
  double prefill_wait_seconds = 0;        // of its disk or bus, in that
  bool full = false;                      // its memory keeps it from holding one layer more

  double wait_seconds() const { return std::max(disk_seconds, bus_seconds); }
  Bound wait_bound() const { return bus_seconds > disk_seconds ? Bound::kBus : Bound::kDisk; }
  std::int64_t layers_on_device() const;  // for the whole job
  std::int64_t layers_in_memory() const;  // of the host; layers on the device are not there
  std::int64_t layers_on_cpu() const;     // of them, those that the processor computes
};

struct LeftOut {
  std::size_t host = 0;
  std::string reason;
};

struct ClusterPlan {
  StagePlan stages;
  int rounds = 1;
  bool in_passes = false;       // something streams: plan/scheduler.h
  std::vector<HostPlan> hosts;  // by rank
  std::vector<LeftOut> left_out;
  double time_to_first_token = 0;    // seconds, weights loaded
  double step_seconds = 0;           // one token of every sequence
  double tokens_per_second = 0;      // of all sequences
  double hop_seconds = 0;            // that a step spends between hosts
  Bound bound = Bound::kMemoryRate;  // of a step
  std::size_t bound_host = 0;        // where; in the cluster

  double job_seconds(const PlanQuestion& question) const;
};

// The plan with which the job ends first. Throws resource_error when no number of these hosts holds
// the model: what it needs, and what they have.
ClusterPlan plan_cluster(const PlanQuestion& question);

}  // namespace stagecoach
