// The one layer loop of a rank: embedding, its windows of layers, and the head, whichever of them
// it has. Knows nothing of ranks; the pipeline tells it what to run.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/batch.h"
#include "engine/forward_block.h"
#include "engine/kv_cache.h"
#include "engine/layer_source.h"
#include "engine/workspace.h"

namespace stagecoach {

class StageRunner {
 public:
  // `max_rows`: largest number of rows in one batch.
  StageRunner(const ModelSpec& spec, Backend& backend, LayerSource& weights, Timeline& timeline,
              std::int64_t max_rows);

  KvCache& kv() { return kv_; }

  // Token ids of `runs` → hidden state (rows, hidden_size), kept in the workspace.
  void embed(std::span<const TokenRun> runs, const BatchLabel& label);
  // The hidden state from and to the host, (rows, hidden_size) float32.
  void set_hidden(std::span<const float> hidden);
  void get_hidden(std::span<float> hidden);

  // Layers [begin, end) on the hidden state. Their KV must have been declared (kv().add_layers).
  void run_layers(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs,
                  const BatchLabel& label);

  // Final norm and head for every row whose logits are wanted, a few rows at a time:
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
  void head_rows(std::int64_t first, std::int64_t count, const BatchLabel& label);

  const ModelSpec& spec_;
  Backend& backend_;
  LayerSource& weights_;
  Timeline& timeline_;
  Workspace workspace_;
  KvCache kv_;
  Buffer logits_;                   // (kHeadRows, vocab), allocated when the head first runs
  std::vector<float> host_logits_;  // the same on the host
};

}  // namespace stagecoach
