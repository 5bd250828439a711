// Where the engine's weights come from: a slice held in memory, or (staging) streamed from disk.
#pragma once

#include <cstdint>
#include <functional>
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

class LayerSource {
 public:
  virtual ~LayerSource() = default;
  // Blocks until the part is in memory. `layer` is ignored for the embedding and the head.
  virtual LayerLease lease(std::int64_t layer, PartKind part) = 0;
};

}  // namespace stagecoach
