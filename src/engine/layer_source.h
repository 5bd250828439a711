// Where the engine's weights come from: a slice held in memory, or one streamed from disk through a
// bounded ring.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "model/tensor_catalog.h"

namespace stagecoach {

// RAII right to use a part's weights. The views stay valid while the lease lives.
class LayerLease {
 public:
  LayerLease(const PartTensors& tensors, std::function<void()> release)
      : tensors_(&tensors), release_(std::move(release)) {}
  LayerLease(LayerLease&& other) noexcept
      : tensors_(other.tensors_), release_(std::exchange(other.release_, nullptr)) {}
  LayerLease& operator=(LayerLease&&) = delete;
  ~LayerLease() {
    if (release_) release_();
  }

  const TensorView& operator[](TensorRole role) const { return (*tensors_)[role]; }

  // Bytes of the part's weights: what one use of the part reads from memory.
  std::int64_t bytes() const {
    std::int64_t sum = 0;
    for (const TensorView& view : tensors_->views)
      if (view) sum += view.bytes();
    return sum;
  }

 private:
  const PartTensors* tensors_;
  std::function<void()> release_;
};

// When a layer's part is used again: a source that streams keeps it for the micro-batches of one
// pass, and makes room for what comes next after the last of them.
enum class NextUse : std::uint8_t { kThisPass, kNextPass };

class LayerSource {
 public:
  virtual ~LayerSource() = default;

  // Blocks until the part (attention or MLP) is in memory. Within a pass, layers are asked for in
  // ring order, each by all of its micro-batches before the next layer is.
  virtual LayerLease lease(std::int64_t layer, PartKind part, NextUse next) = 0;

  // Whether the layer's weights stay where they are for the whole job: its leases wait for nothing,
  // and nothing waits for them.
  virtual bool stays(std::int64_t /*layer*/) const { return false; }

  // What the embedding or the head have besides their large tables: norms, projections, biases.
  // Those tables themselves have null views where they are not in memory.
  virtual LayerLease lease_ends(PartKind part) = 0;

  // Rows `ids` of an embedding table, some at a time: use(first, table, local) where local[i] is
  // the row of `table` that holds row ids[first + i]. Ids are in range (the caller checked).
  using UseRows = std::function<void(std::size_t first, const TensorView& table,
                                     std::span<const std::int32_t> local)>;
  virtual void gather(TensorRole table, std::span<const std::int32_t> ids, const UseRows& use) = 0;

  // The matrix that makes logits, in tiles of output rows that follow one another:
  // use(first_row, tile). Ops that `use` has queued may still read a tile when it returns.
  using UseTile = std::function<void(std::int64_t first_row, const TensorView& tile)>;
  virtual void head_matrix(const UseTile& use) = 0;
};

}  // namespace stagecoach
