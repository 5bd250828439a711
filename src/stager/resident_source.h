// A slice of the model held in memory for the whole job.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "engine/layer_source.h"
#include "store/layer_store.h"
#include "timeline/timeline.h"

namespace stagecoach {

struct ResidentSlice {
  std::vector<std::pair<std::int64_t, std::int64_t>> layers;  // half-open ranges
  bool embedding = false;
  bool head = false;  // a tied head brings the embedding with it
};

class ResidentSource : public LayerSource {
 public:
  using Progress = std::function<void(std::int64_t bytes_done, std::int64_t bytes_total)>;

  // Reads the slice, straight into the memory that it is used from: nothing is copied again. Throws
  // data_error for a missing or damaged slab before anything runs.
  ResidentSource(const LayerStore& store, const ResidentSlice& slice, VerifyMode verify,
                 Timeline& timeline, const Progress& progress = {});

  LayerLease lease(std::int64_t layer, PartKind part) override;

  std::int64_t bytes() const { return bytes_; }
  // What the constructor would hold, without reading anything.
  static std::int64_t bytes_needed(const Manifest& manifest, const ResidentSlice& slice);

 private:
  struct LoadedPart {
    AlignedBuffer extent;
    PartTensors tensors;
  };
  void load(const LayerStore& store, const SlabEntry& slab, VerifyMode verify, Timeline& timeline,
            std::int32_t layer);

  // Layers that share a slab (--distinct-layers) share its memory: the key is the slab's place in
  // the manifest, not the layer.
  const Manifest& manifest_;
  std::map<std::pair<const SlabEntry*, PartKind>, LoadedPart> parts_;
  std::int64_t bytes_ = 0;
};

}  // namespace stagecoach
