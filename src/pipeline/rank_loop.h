// What a rank does all day: receive a micro-batch, run its window, pass it on. Rank 0 also feeds
// the ring from a BatchSource and takes the results.
#pragma once

#include <atomic>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "engine/sampler.h"
#include "engine/stage_runner.h"
#include "pipeline/micro_batch.h"
#include "pipeline/pass_checkpoint.h"
#include "plan/stage_plan.h"
#include "timeline/timeline.h"
#include "transport/transport.h"

namespace stagecoach {

// What enters the ring. Lives on rank 0.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // A micro-batch that may enter now; nullopt: wait for a result first.
  virtual std::optional<MicroBatch> next() = 0;
  virtual void returned(const BatchResult& result) = 0;
  virtual bool done() const = 0;  // nothing will come any more and nothing is under way
  // The hidden state of a micro-batch that does not start at the embedding, (rows, hidden_size).
  // Default: token ids are embedded.
  virtual bool fill_hidden(const MicroBatch&, std::span<float>) { return false; }
};

struct RankContext {
  const ModelSpec& spec;
  const StagePlan& plan;
  StageRunner& runner;
  Transport& transport;
  Timeline& timeline;
  WireType wire = WireType::kF32;
  // Of the transport: hidden states go from device memory to device memory, as float32. Null:
  // through the host's.
  DeviceMessages* device_messages = nullptr;
  // Batches of a pass that wait for each other in the device's memory; any more in the host's.
  int waiting_on_device = 0;
  bool in_passes = false;  // the source forms passes (plan/scheduler.h)
  bool has_head = true;    // false: the plan ends before the last layer (time --layers)
  // Keeps what the first pass has computed, window by window; may be null.
  PassCheckpoint* checkpoint = nullptr;
  // Layers of that pass that a run before has computed: its hidden state after them is there.
  std::int64_t resume_layers = 0;
  // Set by a signal handler: stop with kInterrupted at the next micro-batch.
  const std::atomic<bool>* interrupted = nullptr;
  // Sees every row of logits on the rank that computes them (tests).
  std::function<void(SequenceId, std::int64_t position, std::span<const float>)> observe_logits;
};

// Hidden states that are on their way at once to and from a rank's device, without waiting for each
// other; any more go through the host's memory.
inline constexpr int kDeviceRows = 4;

// Runs until the source is done (rank 0) or rank 0 says so (the others).
void run_rank_zero(const RankContext& context, BatchSource& source);
void run_other_rank(const RankContext& context);

}  // namespace stagecoach
