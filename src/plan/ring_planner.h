// Plans for one choice of hosts, in ring order: what planner.h compares.
#pragma once

#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "plan/cpu_layers.h"
#include "plan/planner.h"

namespace stagecoach {

// Micro-batches of a step or of prompts, as the scheduler forms them: `passes` times `count`.
struct Batches {
  std::int64_t rows = 1, count = 1, passes = 1;
};

class RingPlanner {
 public:
  // `hosts`: places in the question's cluster.
  RingPlanner(const PlanQuestion& question, std::vector<std::size_t> hosts);

  // The plan with which the job ends first; null when the model does not fit.
  std::optional<ClusterPlan> best();

 private:
  // Of a rank's layers: how many there are, how many of them are the processor's beside a GPU, and
  // how often the hidden state crosses between the two.
  struct Portion {
    std::int64_t layers = 0, cpu_layers = 0, crossings = 0;
    bool beside_copies = false;  // of others to the GPU
  };
  struct Fit {
    Residency residency;               // of the host's memory and disk
    std::optional<DeviceSplit> split;  // with a device, whose disk is the host's memory
    std::int64_t memory = 0, device_memory = 0;

    std::int64_t cpu_layers() const { return split ? split->cpu_layers() : 0; }
    Portion portion() const;
  };
  // Of a slice, within the host's memory and its device's; null: does not fit.
  std::optional<Fit> fit(int rank, const RankShape& shape,
                         const std::vector<std::int64_t>& windows) const;
  ResidencyRequest slice(int rank, const RankShape& shape,
                         const std::vector<std::int64_t>& windows) const;
  // With so many layers on the processor.
  std::optional<DeviceSplit> split_of(int rank, RankShape shape, const ResidencyRequest& slice,
                                      std::int64_t cpu_layers) const;
  std::optional<DeviceSplit> split_in_memory(int rank, const RankShape& shape) const;
  // What the user says, of a host with so many layers: fewer than that many while they are handed
  // out.
  std::int64_t told_cpu_layers(std::int64_t layers) const {
    return std::min(layers, *question_.cpu_layers);
  }
  bool has_told_cpu_layers(const std::vector<std::int64_t>& counts) const;
  void take_memory(Fit& fit, RankShape shape) const;  // of fit.split
  PassCost pass_cost(int rank, const Batches& batches, bool prompts) const;
  SplitRates split_rates(int rank) const { return {host(rank).device.bus, host(rank).rates.disk}; }

  int ranks() const { return static_cast<int>(hosts_.size()); }
  std::int64_t layers() const { return question_.spec.num_hidden_layers; }
  const HostSpec& host(int rank) const {
    return question_.cluster.hosts[hosts_[static_cast<std::size_t>(rank)]];
  }
  bool has_head(int rank) const { return rank + 1 == ranks(); }
  const WeightSizes& sizes(int rank) const {
    return sizes_[rank == 0 ? 1 : 0][has_head(rank) ? 1 : 0];
  }
  Batches step(bool in_passes) const;
  Batches prompts(bool in_passes) const;
  Work step_work(int rank, std::int64_t rows) const;
  // Computing of one micro-batch through them.
  double seconds_of(int rank, const Portion& portion, std::int64_t rows, bool prompts) const;
  double head_seconds(std::int64_t rows, bool in_passes) const {
    return costs_.head(hosts_.back(), rows, in_passes).seconds;
  }

  const std::optional<Fit>& in_memory(int rank, std::int64_t count);
  const std::optional<Fit>& in_ring(int rank, std::int64_t count, int rounds);
  std::optional<ClusterPlan> all_in_memory(bool balanced);
  std::optional<ClusterPlan> streamed(int rounds);
  // Layers for each rank, at least `least`: each goes where it is done soonest. seconds(rank,
  // count) grows with count; infinite: does not fit.
  template <typename Seconds>
  std::optional<std::vector<std::int64_t>> hand_out(std::int64_t least,
                                                    const Seconds& seconds) const;
  // rounds = 0: all in memory, one window each.
  ClusterPlan assemble(const std::vector<std::int64_t>& counts, int rounds);
  HostPlan host_plan(int rank, std::int64_t count, const Fit& fit, bool in_passes) const;
  double way_through(const ClusterPlan& plan, const Batches& batches, bool prompts) const;
  void predict(ClusterPlan& plan) const;

  const PlanQuestion& question_;
  const std::vector<std::size_t> hosts_;
  const CostModel costs_;
  WeightSizes sizes_[2][2];  // by whether the rank has the embedding, and the head
  // By rank, layers and rounds (0: in memory).
  std::map<std::tuple<int, std::int64_t, int>, std::optional<Fit>> fits_;
};

}  // namespace stagecoach
