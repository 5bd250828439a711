// The one layer loop of a rank: embedding, its windows of layers, and the head, whichever of them
// it has. Knows nothing of ranks; the pipeline tells it what to run.
//
// Some of the layers may be the host's processor's, beside a GPU that computes the others and both
// ends. The hidden state is then where it was used last, and moves when the other side needs it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/page_allocator.h"
#include "engine/batch.h"
#include "engine/device_rows.h"
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
    // Called before each layer that is no part of a recorded step; may throw, to end the job there.
    std::function<void()> before_layer = {};
  };
  // Enough to reuse the head's weights where they are in memory, few enough that the logits of a
  // 250,000-token vocabulary stay at 16 MB, on the device and on the host.
  static constexpr std::int64_t kHeadRows = 16;

  // Layers that the processor computes beside a device with memory of its own.
  struct CpuLayers {
    Backend& backend;
    LayerSource& weights;  // in the host's memory
    InputPacking packing = std::nullopt;
    std::set<std::int64_t> layers;
  };

  StageRunner(const ModelSpec& spec, Backend& backend, LayerSource& weights, Timeline& timeline,
              const Limits& limits, const std::optional<CpuLayers>& cpu = std::nullopt);
  StageRunner(const StageRunner&) = delete;
  StageRunner& operator=(const StageRunner&) = delete;

  // Declares layers [begin, end) as this rank's, before any sequence comes.
  void add_layers(std::int64_t begin, std::int64_t end);
  // Keys and values of a layer, where it is computed.
  KvCache& kv(std::int64_t layer) { return side_of(layer).kv; }
  // Forgets a sequence in all layers.
  void drop(SequenceId sequence);
  // Allocated for keys and values in the host's memory, and in a device's own.
  std::int64_t host_kv_bytes() const;
  std::int64_t device_kv_bytes() const;

  // Token ids of `runs` → hidden state (rows, hidden_size), kept in the workspace.
  void embed(std::span<const TokenRun> runs, const BatchLabel& label);
  std::int64_t max_rows() const { return workspace_.max_rows; }
  // Memory of the host for hidden states on their way, with room for so many rows: page-locked
  // where a device copies from it and to it. It may be resized within that room.
  struct HostRows {
    PageFloats values;
    std::shared_ptr<void> lock;  // released before the values

    HostRows() = default;
    HostRows(HostRows&&) noexcept = default;
    HostRows& operator=(HostRows&& other) noexcept {
      lock = std::move(other.lock);
      values = std::move(other.values);
      return *this;
    }
    ~HostRows() = default;
  };
  HostRows make_host_rows(std::int64_t rows);
  // The hidden state from and to the host, (rows, hidden_size) float32. A device may still be
  // copying from `hidden` when set_hidden returns: the host writes there after
  // host_rows_are_free().
  void set_hidden(std::span<const float> hidden);
  void get_hidden(std::span<float> hidden);
  void host_rows_are_free();
  // Memory of the device for hidden states on their way, each with room for the largest batch; null
  // where the device's memory is the host's.
  std::unique_ptr<DeviceRows> make_device_rows(int pieces);
  // Whether the hidden state is on a device with memory of its own.
  bool hidden_on_device() const { return !hidden_at_->backend.is_host(); }
  // As set_hidden and get_hidden, from and to its memory, of so many bytes. The first holds on to
  // `rows` until they are copied, at most until host_rows_are_free(); the second returns when
  // they are.
  void set_device_hidden(std::shared_ptr<const std::byte> rows, std::size_t bytes);
  void get_device_hidden(std::byte* rows, std::size_t bytes);
  // Memory of the device for batches that take turns at layers; null where there is none but the
  // host's, or the processor has layers.
  std::unique_ptr<DeviceRows> make_waiting_rows(int batches);
  static std::int64_t waiting_bytes(const ModelSpec& spec, std::int64_t rows);  // of a batch
  // What a batch has in the workspace (the hidden state, the angles of its positions) to such
  // memory, and from there. In the order of ops, not waited for.
  void set_aside(std::byte* to, std::span<const TokenRun> runs);
  void take_up(const std::byte* from, std::span<const TokenRun> runs);
  // Waits for what has been queued, and records when it was done. What brings something to the host
  // does so too.
  void finish();

  // Layers [begin, end) on the hidden state; add_layers has declared them.
  void run_layers(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs,
                  const BatchLabel& label, NextUse next = NextUse::kNextPass);

  // How often a recording stood for layers' ops.
  std::int64_t replays() const { return main_.steps.replays(); }

  // Final norm and head for every row whose logits are wanted, limits.head_rows at a time:
  // use(run, row in run, logits (vocab)). The callee may scribble on the logits.
  using UseLogits = std::function<void(const TokenRun&, std::int64_t row, std::span<float> logits)>;
  void run_head(std::span<const TokenRun> runs, const BatchLabel& label, const UseLogits& use);

 private:
  // What computes layers, with all that they need there.
  struct Side {
    Side(const ModelSpec& spec, Backend& backend_in, LayerSource& weights_in, Timeline& timeline,
         const Limits& limits, InputPacking packing)
        : backend(backend_in),
          weights(weights_in),
          ops(backend, timeline),
          steps(backend, ops),
          workspace(spec, backend, limits.max_rows, packing),
          kv(spec, limits.kv_type, backend) {}

    Backend& backend;
    LayerSource& weights;
    OpTimeline ops;
    RecordedSteps steps;
    Workspace workspace;
    std::vector<std::int64_t> angles_of;  // positions of workspace.cos and .sin
    KvCache kv;
  };

  bool on_cpu(std::int64_t layer) const { return cpu_ && cpu_layers_.contains(layer); }
  Side& side_of(std::int64_t layer) { return on_cpu(layer) ? *cpu_ : main_; }
  void move_hidden(Side& to, std::int64_t rows);
  void run_on(Side& side, std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs,
              const BatchLabel& label, NextUse next);
  // y (rows, weight.rows) = x (rows, weight.cols) · weightᵀ [+ bias].
  void linear(const float* x, const TensorView& weight, const float* bias, float* y,
              std::int64_t rows);
  void norm(const float* x, const TensorView& weight, const TensorView& bias, float* y,
            std::int64_t rows);
  void prepare_rotary(Side& side, std::span<const TokenRun> runs);
  struct Piece {
    std::byte* data;
    std::size_t bytes;
  };
  std::vector<Piece> pieces_of(std::span<const TokenRun> runs);
  std::int64_t gather(TensorRole table, std::span<const TokenId> ids, float* out,
                      std::int64_t width, bool accumulate);
  void head_rows(std::span<const TokenId> rows, const BatchLabel& label);

  const ModelSpec& spec_;
  const Limits limits_;
  Side main_;
  std::optional<Side> cpu_;
  std::set<std::int64_t> cpu_layers_;
  Side* hidden_at_ = &main_;                      // where the hidden state is
  EventPtr hidden_copied_;                        // of the last set_hidden or set_device_hidden
  std::shared_ptr<const std::byte> device_rows_;  // of the latter
  // The ends of the model are main's.
  Backend& backend_ = main_.backend;
  LayerSource& weights_ = main_.weights;
  OpTimeline& ops_ = main_.ops;
  Workspace& workspace_ = main_.workspace;
  Buffer logits_;           // (head_rows, vocab), allocated when the head first runs
  PageFloats host_logits_;  // the same on the host
  std::shared_ptr<void> logits_lock_;
};

}  // namespace stagecoach
