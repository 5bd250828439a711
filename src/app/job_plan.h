// How the ranks of a job come to one plan: each knows its own memory and disk, rank 0 the size of
// the work. Collective, between opening stores and loading weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "app/memory_budget.h"
#include "app/settings.h"
#include "pipeline/control_channel.h"
#include "pipeline/pass_checkpoint.h"
#include "plan/job_shape.h"
#include "plan/residency.h"
#include "plan/stage_plan.h"
#include "stager/staging_plan.h"
#include "store/layer_store.h"

namespace stagecoach {

struct PlanRequest {
  const LayerStore& store;
  const RunSettings& settings;
  std::int64_t layer_begin = 0, layer_end = 0;
  JobShape shape;  // rank 0's; the others hear it
  InputPacking packing = std::nullopt;
  int threads = 1;                  // of this rank, that compute
  const Backend* device = nullptr;  // of this rank, if it has memory of its own
  bool device_messages = false;     // hidden states come into that and leave from there
  // Beside one: what the processor packs, and whether it may compute everything instead.
  InputPacking cpu_packing = std::nullopt;
  bool device_optional = false;
};

struct JobPlan {
  StagePlan stages;
  StagingPlan staging;           // of this rank
  JobShape shape;                // rank 0's
  MemoryNeeds needs;             // of this rank, weights apart
  std::int64_t micro_batch = 0;  // rows that one may have: --micro-batch, or what ranks agree on
  std::int64_t batch_rows = 0;   // of the largest that the job has
  std::int64_t head_rows = 0;
  int waiting_on_device = 0;  // batches of a pass
  // Work goes in passes (plan/scheduler.h): some rank streams, or a checkpoint is kept.
  bool in_passes = false;
  // The device is too small for the least of this rank's slice: the processor computes instead.
  bool without_device = false;

  std::vector<std::int64_t> cpu_layers() const;  // of this rank, beside its device
};

// Throws usage_error for windows that do not fit and layers for a processor that there are not,
// resource_error where this rank's budget is too
// small: what needs how much, and the smallest budget that would do. Every rank leaves the exchange
// before any of them throws.
JobPlan negotiate_plan(const PlanRequest& request, ControlChannel& control);

}  // namespace stagecoach
