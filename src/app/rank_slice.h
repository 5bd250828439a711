// Where the weights of a rank's slice are and what computes them: on its device, in its memory or
// on its disk, within what that rank may use.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "app/job_plan.h"
#include "base/error.h"
#include "plan/cluster_spec.h"
#include "plan/cpu_layers.h"
#include "plan/device_residency.h"
#include "transport/transport.h"

namespace stagecoach {

struct Placement {
  Residency host;
  std::optional<DeviceSplit> split;  // with a device that has memory of its own

  bool streams() const { return split ? split->streams() : host.streamed > 0; }
  std::int64_t host_memory() const { return split ? split->host_memory : host.memory; }
};

class RankSlice {
 public:
  RankSlice(const PlanRequest& request, const Transport& transport);

  // Rank 0's, which the others hear.
  void set_shape(const JobShape& shape) { shape_ = shape; }
  const JobShape& shape() const { return shape_; }
  // Before all that follows. Throws usage_error for a budget that is no size.
  void find_budgets();
  // Rows that a micro-batch may have.
  void set_micro_batch(std::int64_t rows);
  std::int64_t micro_batch() const { return micro_batch_; }

  bool has_device() const { return request_.device != nullptr; }
  // Whether the device takes the least of one of such slices.
  bool device_serves(std::span<const StagePlan> plans) const;
  // The processor computes everything from now on.
  void give_up_device();
  // Of a plan that streams; what is too small, and what would do.
  Error device_too_small(const StagePlan& stages) const;

  // --cpu-layers; nullopt: auto.
  std::optional<std::int64_t> wanted_cpu_layers() const;
  std::int64_t layers(const StagePlan& stages) const;
  bool one_micro_batch() const;

  // With passes (plan/scheduler.h), frugal or not; nothing where it does not fit.
  std::optional<Placement> in_passes(const StagePlan& stages) const;
  bool fits_in_memory(const StagePlan& stages, bool in_passes) const;
  // What a usual pass waits for: disk and bus work beside each other, and beside the processor.
  double wait_seconds(const Placement& placement) const;

  // Fills in what `plan`, whose stages and kind are chosen, means for this rank. Throws
  // resource_error where that does not fit.
  void place(JobPlan& plan) const;

 private:
  struct Wanted {
    bool in_passes = false, frugal = false;
    bool in_memory = false;  // nothing streams
  };

  // What layers cost on the device and on the processor.
  void know_costs();
  // As `probe` has found them, or assumed.
  DeviceRates device_rates() const;
  double disk_rate() const;  // bytes per second
  bool has_embedding(const StagePlan& stages) const;
  bool has_head(const StagePlan& stages) const;
  NeedsRequest needs_request(const StagePlan& stages, const Wanted& wanted,
                             std::int64_t cpu_layers) const;
  WeightSizes weight_sizes(const StagePlan& stages) const;
  ResidencyRequest residency_request(const StagePlan& stages, const Wanted& wanted,
                                     std::int64_t memory) const;
  std::optional<DeviceSplit> split_of(const StagePlan& stages, const Wanted& wanted,
                                      std::int64_t cpu_layers) const;
  std::optional<DeviceSplit> chosen_split(const StagePlan& stages, const Wanted& wanted) const;
  std::optional<Placement> placement_of(const StagePlan& stages, const Wanted& wanted) const;
  // With such a placement, or where there is none.
  std::int64_t cpu_layers_of(const std::optional<Placement>& placement) const;
  StagingPlan staging_of(const StagePlan& stages, const Placement& placement) const;
  std::int64_t least_device_weights(const StagePlan& stages, bool in_passes) const;
  Error device_too_small(const StagePlan& stages, bool in_passes, const MemoryNeeds& needs) const;
  Error too_small(const JobPlan& plan) const;
  void check_device_has(const JobPlan& plan, const Placement& placement) const;
  void log(const JobPlan& plan, const Placement& placement) const;

  PlanRequest request_;
  const int rank_, ranks_;
  const std::string host_;
  const ModelSpec& spec_;
  const DType weights_;
  JobShape shape_;
  std::int64_t micro_batch_;
  std::optional<std::int64_t> budget_, device_budget_;
  bool given_ = false;  // the budget, by the user
  // Of a device: of the prompts' passes and of the steps, where this host's rates are known.
  std::vector<PassCost> costs_;
  PassCost step_cost_;
};

}  // namespace stagecoach
