// What a run was and what came of it, apart from its spans: the head of every report.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/machine_limits.h"
#include "timeline/timeline.h"

namespace stagecoach {

// What a rank says of itself at the end of a run.
struct RankUsage {
  std::string layers;  // "0:5", "0:2,8:10"
  std::string isa;
  std::string device;  // the GPU that computes (Backend::device_label); empty: the processor does
  std::vector<std::int64_t> cpu_layers = {};  // beside a GPU: those that the processor computes
  std::string inputs;  // what products multiply weights with: "f32", "f16", "bf16", "int8"
  std::int64_t threads = 0;
  std::int64_t weights_bytes = 0;  // held for the run, in the host's memory
  std::int64_t kv_bytes = 0;       // allocated for keys and values, there
  std::int64_t device_weights_bytes = 0, device_kv_bytes = 0;  // the same of the GPU's memory
  std::int64_t peak_bytes = 0;  // largest resident set of the process; 0: unknown
  // What its threads, or its GPU, can reach at most; 0: not probed. Bytes read, and operations with
  // such inputs.
  double memory_bytes_per_s = 0, flops_per_s = 0;
  // Direct reads of the file system that its store is on; copies from page-locked memory to its
  // GPU. 0: not probed.
  double disk_bytes_per_s = 0, bus_bytes_per_s = 0;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(layers, isa, device, cpu_layers, inputs, threads, weights_bytes, kv_bytes,
            device_weights_bytes, device_kv_bytes, peak_bytes, memory_bytes_per_s, flops_per_s,
            disk_bytes_per_s, bus_bytes_per_s);
  }
};

// Fills in the limits of a rank with usage.threads threads that reads `store`; null: they stay
// unknown.
void add_limits(RankUsage& usage, const std::optional<MachineLimits>& limits,
                const std::filesystem::path& store);
// With the limits that `stagecoach probe` has found on this host, read once a process.
RankUsage with_cached_limits(RankUsage usage, const std::filesystem::path& store);

// One phase of a run: medians and quartiles over its passes.
struct PhaseResult {
  Phase phase = Phase::kNone;
  std::int64_t passes = 0;
  std::int64_t tokens = 0;              // of one pass
  double ms = 0, ms_q1 = 0, ms_q3 = 0;  // wall time of a pass
  double tokens_per_second = 0;
  double embedding_ms = 0, head_ms = 0;
};

struct RunInfo {
  std::string command;  // "time"
  std::string work;     // for people: "prefill of 512 tokens, 5 passes"
  std::string model, model_version, weights;
  std::string build;  // of Stagecoach
  std::string wire;   // type of hidden states between ranks
  std::string kv;     // type of keys and values
  std::int64_t layer_begin = 0, layer_end = 0, model_layers = 0;
  std::int64_t distinct_layers = 0;  // fewer than model_layers: layers share slabs
  std::int64_t micro_batch = 0;
  int ranks = 0;
  std::optional<double> tokens_per_second;  // of the whole run, where it has such a figure
  std::vector<PhaseResult> phases;

  bool shares_slabs() const { return distinct_layers < model_layers; }
};

// "the store's 96 layers share 4 slabs: …": every report of such a run says so.
std::string shared_slabs_note(std::int64_t model_layers, std::int64_t distinct_layers);

}  // namespace stagecoach
