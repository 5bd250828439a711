// How long a host takes for its work, from its rates: what planner and simulator share.
// docs/planning.md derives it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "model/model_spec.h"
#include "plan/cluster_spec.h"
#include "plan/job_shape.h"
#include "plan/residency.h"

namespace stagecoach {

// What its rank's memory needs besides weights depends on these.
struct RankShape {
  std::int64_t layers = 0;
  std::int64_t largest_window = 0;
  bool head = false;
  bool in_passes = false;  // some rank streams
  bool frugal = false;     // as few logits at once as will do
  int ranks = 1;
  bool on_device = false;       // computes on its GPU
  std::int64_t cpu_layers = 0;  // beside it
};

enum class Arithmetic : std::uint8_t { kF32, kBF16, kInt8 };

// A model, the work to be done with it, and the hosts that could do it.
struct PlanQuestion {
  explicit PlanQuestion(const ModelSpec& spec_in) : spec(spec_in) {}

  const ModelSpec& spec;
  std::int64_t layer_bytes = 0, head_bytes = 0;  // of weights, as a step reads them
  std::int64_t kv_bytes = 0;                     // of keys and values, of a position in a layer
  // Rows whose logits are made at once, for each of which the head's matrix is read again.
  std::int64_t head_rows = 1, head_rows_in_passes = 1;
  Arithmetic arithmetic = Arithmetic::kF32;  // of the matrix products
  ClusterSpec cluster;                       // every host with its memory and all rates
  std::int64_t prompt_tokens = 512;          // of each sequence
  std::int64_t new_tokens = 128;             // of each sequence
  std::int64_t sequences = 1;                // at once
  std::int64_t micro_batch = 256;            // rows
  std::optional<std::int64_t> cpu_layers;    // of each host with a GPU; null: as many as help
  // Rows of a pass, at most.
  std::int64_t largest_pass() const {
    return std::max(sequences, affordable_pass(spec.hidden_size));
  }
  // Keys that a row attends to, on average.
  std::int64_t prompt_context() const { return prompt_tokens / 2 + 1; }
  std::int64_t step_context() const { return prompt_tokens + new_tokens / 2 + 1; }

  // How often a pass or step goes through the head's matrix.
  std::int64_t head_sweeps(std::int64_t rows, bool in_passes) const {
    const std::int64_t at_once = in_passes ? head_rows_in_passes : head_rows;
    return (rows + at_once - 1) / at_once;
  }

  std::function<WeightSizes(bool embedding, bool head)> slice_sizes;
  // Bytes besides weights: of the host, and of its device if the rank computes there.
  std::function<std::int64_t(const RankShape&)> other_memory, other_device_memory;
};

// What keeps a host's part of the work from being done sooner.
enum class Bound : std::uint8_t { kDisk, kMemoryRate, kArithmetic, kNetwork, kBus };
// "disk", "memory bandwidth", "arithmetic", "network", "bus to the device"
std::string_view bound_name(Bound bound);

struct Work {
  double seconds = 0;
  Bound bound = Bound::kMemoryRate;
};

class CostModel {
 public:
  explicit CostModel(const PlanQuestion& question) : question_(question) {}

  // Rows of so many sequences through one layer, each with so many keys.
  struct LayerRows {
    std::int64_t rows = 1, sequences = 1, context = 1;
  };
  // A step, whose rows are each another sequence's; and a micro-batch of a prompt.
  LayerRows step_rows(std::int64_t rows) const { return {rows, rows, question_.step_context()}; }
  LayerRows prompt_rows(std::int64_t rows) const {
    return {rows, (rows + question_.prompt_tokens - 1) / question_.prompt_tokens,
            question_.prompt_context()};
  }
  // One layer on what computes the host's layers, and on the host's processor beside its GPU, while
  // copies to that take the bus's rate of the host's memory or while none does. Weights are in
  // memory.
  Work layer(std::size_t host, const LayerRows& batch) const;
  Work cpu_layer(std::size_t host, const LayerRows& batch, bool beside_copies) const;
  // Hidden states of `rows` rows from one to the other.
  double crossing(std::size_t host, std::int64_t rows) const;
  Work head(std::size_t host, std::int64_t rows, bool in_passes) const;
  // One layer, or for the logits of so many rows the head, from the host's disk.
  double layer_read_seconds(std::size_t host) const;
  double head_read_seconds(std::size_t host, std::int64_t rows) const;
  // One layer from the host's memory to its device.
  double layer_copy_seconds(std::size_t host) const;
  // Hidden states of `rows` rows on a link, and all the way to another host.
  double transfer(std::int64_t rows) const;
  double hop(std::int64_t rows) const { return question_.cluster.network.latency + transfer(rows); }

 private:
  Work device_work(const DeviceRates& rates, std::int64_t bytes, std::int64_t flops,
                   std::int64_t rows) const;
  Work cpu_work(const HostRates& rates, std::int64_t bytes, std::int64_t flops,
                std::int64_t rows) const;
  Work work(std::size_t host, std::int64_t bytes, std::int64_t flops, std::int64_t rows) const;
  std::int64_t layer_bytes(const LayerRows& batch) const;
  std::int64_t flops(const LayerRows& batch) const;

  const PlanQuestion& question_;
};

}  // namespace stagecoach
