// From a store's manifest and a job's work to the question that the planner answers: what `plan`
// and `launch` share.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "app/memory_budget.h"
#include "plan/cost_model.h"
#include "store/manifest.h"

namespace stagecoach {

struct PlannedWork {
  std::int64_t tokens = 512, new_tokens = 128;  // of each sequence: its prompt, and what it gains
  std::int64_t sequences = 1;                   // at once
  std::int64_t micro_batch = 0;                 // 0: as its ranks would agree
  KvType kv_type = KvType::kF16;
  std::string activations = "auto";
  std::optional<std::int64_t> cpu_layers = std::nullopt;  // of each host with a GPU; null: auto
};

class PlanInputs {
 public:
  PlanInputs(Manifest manifest, PlannedWork work);
  PlanInputs(const PlanInputs&) = delete;  // questions point to it
  PlanInputs& operator=(const PlanInputs&) = delete;

  const Manifest& manifest() const { return manifest_; }
  const PlannedWork& work() const { return work_; }
  // Of a cluster whose hosts have their memory and all rates. Lives no longer than this.
  PlanQuestion question(ClusterSpec cluster) const;

 private:
  NeedsRequest needs_request(const RankShape& rank, InputPacking packing,
                             std::int64_t micro_batch) const;
  std::int64_t agreed_micro_batch(const ClusterSpec& cluster, InputPacking packing) const;
  InputPacking packing_of(const ClusterSpec& cluster) const;

  const Manifest manifest_;
  const ModelSpec& spec_;
  const PlannedWork work_;
  JobShape shape_;
};

// What `probe` has measured here; the disk's rate is that of `store`, 0 where it was not probed.
// Null: never probed.
std::optional<HostRates> rates_of_this_machine(const std::string& store);
// Likewise of its first GPU; what was not probed is 0.
DeviceRates device_rates_of_this_machine();

}  // namespace stagecoach
