// Which host runs which layers, and what that will give: pure functions of sizes and rates. The
// same arithmetic as the ranks' own (plan/residency.h), ahead of the job and for all hosts at once.
// docs/planning.md derives the times.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "model/model_spec.h"
#include "plan/cluster_spec.h"
#include "plan/residency.h"
#include "plan/stage_plan.h"

namespace stagecoach {

// What its rank's memory needs besides weights depends on these.
struct RankShape {
  std::int64_t layers = 0;
  std::int64_t largest_window = 0;
  bool head = false;
  bool in_passes = false;  // some rank streams
  int ranks = 1;
};

enum class Arithmetic : std::uint8_t { kF32, kBF16, kInt8 };

struct PlanQuestion {
  explicit PlanQuestion(const ModelSpec& spec_in) : spec(spec_in) {}

  const ModelSpec& spec;
  std::int64_t layer_bytes = 0, head_bytes = 0;  // of weights, as a step reads them
  Arithmetic arithmetic = Arithmetic::kF32;      // of the matrix products
  ClusterSpec cluster;                           // every host with its memory and all rates
  std::int64_t prompt_tokens = 512;              // of each sequence
  std::int64_t new_tokens = 128;                 // of each sequence
  std::int64_t sequences = 1;                    // at once
  std::int64_t micro_batch = 256;                // rows
  std::function<WeightSizes(bool embedding, bool head)> slice_sizes;
  std::function<std::int64_t(const RankShape&)> other_memory;  // bytes besides weights
};

// What keeps a host's part of the work from being done sooner.
enum class Bound : std::uint8_t { kDisk, kMemoryRate, kArithmetic, kNetwork };
std::string_view bound_name(Bound bound);  // "disk", "memory bandwidth", "arithmetic", "network"

struct HostPlan {
  std::size_t host = 0;  // in the cluster
  std::int64_t layers = 0, pinned = 0;
  std::int64_t memory = 0;     // bytes that its rank will take
  std::int64_t streamed = 0;   // bytes that each step reads from its disk
  double disk_seconds = 0;     // that a step waits for its disk at least
  double step_seconds = 0;     // of computing, in a step
  double prefill_seconds = 0;  // of computing, in the prefill of one sequence
  Bound step_bound = Bound::kMemoryRate;
  bool full = false;  // its memory keeps it from holding one layer more
};

struct LeftOut {
  std::size_t host = 0;
  std::string reason;
};

struct ClusterPlan {
  StagePlan stages;
  int rounds = 1;
  std::vector<HostPlan> hosts;  // by rank
  std::vector<LeftOut> left_out;
  double time_to_first_token = 0;    // seconds, weights loaded
  double step_seconds = 0;           // one token of every sequence
  double tokens_per_second = 0;      // of all sequences
  double hop_seconds = 0;            // that a step spends between hosts
  Bound bound = Bound::kMemoryRate;  // of a step
  std::size_t bound_host = 0;        // where; in the cluster

  bool streams() const;
  double job_seconds(const PlanQuestion& question) const;
};

// The plan with which the job ends first. Throws resource_error when no number of these hosts holds
// the model: what it needs, and what they have.
ClusterPlan plan_cluster(const PlanQuestion& question);

}  // namespace stagecoach
