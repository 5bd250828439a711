// The one layer loop of a rank: embedding, its windows of layers, and the head, whichever of them
// it has. Knows nothing of ranks; the pipeline tells it what to run.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/batch.h"
#include "engine/forward_block.h"
#include "engine/kv_cache.h"
#include "engine/layer_source.h"
#include "engine/recorded_steps.h"
#include "engine/workspace.h"

namespace stagecoach {

class StageRunner {
 public:
  struct Limits {
    std::int64_t max_rows = 1;  // largest number of rows in one batch
    // Rows whose logits are in memory at once: the head's weights pass once for them all.
    std::int64_t head_rows = kHeadRows;
    InputPacking packing = std::nullopt;  // of rows before they are multiplied
    KvType kv_type = KvType::kF32;        // the reference arithmetic
  };
  // Enough to reuse the head's weights where they are in memory, few enough that the logits of a
  // 250,000-token vocabulary stay at 16 MB, on the device and on the host.
  static constexpr std::int64_t kHeadRows = 16;

  StageRunner(const ModelSpec& spec, Backend& backend, LayerSource& weights, Timeline& timeline,
              const Limits& limits);

  KvCache& kv() { return kv_; }

  // Token ids of `runs` → hidden state (rows, hidden_size), kept in the workspace.
  void embed(std::span<const TokenRun> runs, const BatchLabel& label);
  // Memory of the host for hidden states on their way, with room for the largest batch: page-locked
  // where a device copies from it and to it. It may be resized within that room.
  struct HostRows {
    std::vector<float> values;
    std::shared_ptr<void> lock;  // released before the values
  };
  HostRows make_host_rows();
  // The hidden state from and to the host, (rows, hidden_size) float32. A device may still be
  // copying from `hidden` when set_hidden returns: the host writes there after
  // host_rows_are_free().
  void set_hidden(std::span<const float> hidden);
  void get_hidden(std::span<float> hidden);
  void host_rows_are_free();
  // Waits for what has been queued, and records when it was done. What brings something to the host
  // does so too.
  void finish();

  // Layers [begin, end) on the hidden state. Their KV must have been declared (kv().add_layers).
  void run_layers(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs,
                  const BatchLabel& label, NextUse next = NextUse::kNextPass);

  // How often a recording stood for layers' ops.
  std::int64_t replays() const { return steps_.replays(); }

  // Final norm and head for every row whose logits are wanted, limits.head_rows at a time:
  // use(run, row in run, logits (vocab)). The callee may scribble on the logits.
  using UseLogits = std::function<void(const TokenRun&, std::int64_t row, std::span<float> logits)>;
  void run_head(std::span<const TokenRun> runs, const BatchLabel& label, const UseLogits& use);

 private:
  // y (rows, weight.rows) = x (rows, weight.cols) · weightᵀ [+ bias].
  void linear(const float* x, const TensorView& weight, const float* bias, float* y,
              std::int64_t rows);
  void norm(const float* x, const TensorView& weight, const TensorView& bias, float* y,
            std::int64_t rows);
  void prepare_rotary(std::span<const TokenRun> runs);
  std::int64_t gather(TensorRole table, std::span<const TokenId> ids, float* out,
                      std::int64_t width, bool accumulate);
  void head_rows(std::span<const TokenId> rows, const BatchLabel& label);

  bool recordable(std::span<const TokenRun> runs) const;

  const ModelSpec& spec_;
  Backend& backend_;
  LayerSource& weights_;
  Timeline& timeline_;
  OpTimeline ops_;
  RecordedSteps steps_;
  Limits limits_;
  Workspace workspace_;
  KvCache kv_;
  EventPtr hidden_copied_;          // of the last set_hidden
  Buffer logits_;                   // (head_rows, vocab), allocated when the head first runs
  std::vector<float> host_logits_;  // the same on the host
  std::shared_ptr<void> logits_lock_;
};

}  // namespace stagecoach
