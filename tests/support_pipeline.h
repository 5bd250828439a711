// A whole pipeline in one process: ranks as threads over the loopback transport, the same rank
// loop, plan and weights as a real job.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "engine/workspace.h"
#include "kernels/include/kv_page.h"
#include "stager/device_stager.h"
#include "stager/layer_stager.h"
#include "store/layer_store.h"
#include "support_late_transport.h"

namespace stagecoach {

// "cpu", or what STAGECOACH_TEST_DEVICE says: "cuda", the device that STAGECOACH_MODULES leads to.
std::string test_device();
std::unique_ptr<Backend> make_device(const std::string& device, int threads,
                                     const std::string& isa);

// A rank's weights where its device wants them.
class DeviceWeights {
 public:
  DeviceWeights(const LayerStore& store, StagingPlan plan, Backend& backend, Timeline& timeline);
  LayerSource& source() { return device_ ? static_cast<LayerSource&>(*device_) : *host_; }
  LayerSource& host_source() { return *host_; }

 private:
  std::optional<LayerStager> host_;
  std::optional<DeviceStager> device_;
};

struct PipelineShape {
  int ranks = 1;
  int threads = 1;
  int rounds = 1;
  std::int64_t micro_batch = 256;
  int max_active = 32;
  std::string isa = {};      // empty: the best
  std::string windows = {};  // empty: balanced
  int streamed_layers = 0;   // of each rank, from its first on, and its ends; 0: all in memory
  int attention_slots = 1, mlp_slots = 1;
  std::int64_t pass_tokens = 0;  // streamed: rows of a pass; 0: all that there are
  std::int64_t head_rows = 16;
  InputPacking packing = std::nullopt;  // of activations that are multiplied
  KvType kv = KvType::kF32;             // the reference arithmetic
  std::string device = test_device();
  std::set<std::int64_t> cpu_layers = {};  // that the processor computes beside the device
  // Hidden states go from device to device, late (support_late_transport.h), and are counted.
  DeviceTraffic* device_messages = nullptr;

  std::string name() const;
};

struct PipelineRequest {
  std::vector<std::int32_t> tokens;
  bool score = false;
  std::int64_t max_new_tokens = 0;
  SamplingParams sampling;
};

struct PipelineOutput {
  std::vector<std::int32_t> drawn;
  std::vector<double> log_probs;                      // score: of tokens 1, 2, …
  std::map<std::int64_t, std::vector<float>> logits;  // by position of the row
};

// One output per request. Errors of any rank are rethrown.
std::vector<PipelineOutput> run_pipeline(const LayerStore& store, const PipelineShape& shape,
                                         const std::vector<PipelineRequest>& requests);

SamplingParams greedy_sampling();

}  // namespace stagecoach
