// One rank's part of one job; run_job.cc agrees with the other ranks between its steps.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "app/job_plan.h"
#include "app/run_job.h"
#include "pipeline/agreement.h"
#include "pipeline/checkpoint_resume.h"
#include "pipeline/control_channel.h"
#include "stager/device_stager.h"
#include "stager/layer_stager.h"

namespace stagecoach {

// One rank's part of a job, in the order in which things happen.
class JobRun {
 public:
  JobRun(const JobStep& step, ControlChannel& control)
      : settings_(step.settings),
        kind_(step.kind),
        name_(step.name),
        transport_(control.transport()),
        control_(control) {}

  ControlChannel& control() { return control_; }
  const std::string& name() const { return name_; }

  void open();  // store, device, work
  void plan();  // which rank runs and holds what; collective
  bool keeps_checkpoint() const { return settings_.keeps_passes(); }
  void find_resume_point();   // in the checkpoint; collective
  void load();                // weights
  RankStatus status() const;  // after open(): what ranks compare
  void run();                 // all of the work, collectively
  void finish();              // reports and results, rank 0's

  // After an error: the next job would meet that device again.
  bool device_is_lost() const;

  // The layers of a rank, for messages; empty before there is a plan. Called by the watching
  // thread.
  std::string describe(int rank) const;

 private:
  const ModelSpec& spec() const { return store_->manifest().spec; }
  JobView view() const {
    return {*store_,       plan_.stages, plan_.batch_rows, isa_,
            pass_tokens(), resume_,      plan_.micro_batch};
  }
  std::int64_t pass_tokens() const;
  InputPacking packing_of(const Backend& backend) const;
  WireType wire() const { return settings_.wire == "bf16" ? WireType::kBF16 : WireType::kF32; }
  // Of the transport, where this rank's hidden states come into its device's memory and leave from
  // there; else null.
  DeviceMessages* device_messages() const;
  void open_backend();
  bool device_optional() const;  // the processor may compute everything instead
  void check_heads();
  void compute_without_device();
  std::string who_computes() const;

  RankUsage usage();
  RunInfo run_info() const;
  std::string describe_plan() const;  // what each host's store must hold
  CheckpointIdentity checkpoint_identity();
  std::string why_of_one_plan(const CheckpointIdentity& identity) const;
  std::int64_t least_checkpoint_bytes() const;

  const RunSettings& settings_;
  const JobKind& kind_;
  const std::string& name_;
  Transport& transport_;
  ControlChannel& control_;
  std::optional<LayerStore> store_;
  std::int64_t layer_begin_ = 0, layer_end_ = 0;
  JobShape shape_;
  JobPlan plan_;
  std::optional<PassCheckpoint> checkpoint_;
  ResumePoint resume_;
  mutable std::mutex description_mutex_;
  std::vector<std::string> descriptions_;
  bool device_failed_ = false;  // to open
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Backend> processor_;  // beside a device, where it computes some layers
  std::string isa_;
  InputPacking packing_;
  Timeline timeline_;
  std::optional<LayerStager> source_;
  std::optional<DeviceStager> device_source_;  // where the device has memory of its own
  std::optional<StageRunner> runner_;
  std::unique_ptr<BatchSource> batches_;
  std::vector<RankTimeline> ranks_;  // rank 0, after run()
};

}  // namespace stagecoach
