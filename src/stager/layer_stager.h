// The weights of a rank: layers held in memory for the whole job, layers streamed from disk through
// a bounded ring, and the two ends of the model.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "engine/layer_source.h"
#include "stager/end_tables.h"
#include "stager/part_stream.h"
#include "stager/staging_plan.h"
#include "stager/store_reader.h"

namespace stagecoach {

struct StagerOptions {
  VerifyMode verify = VerifyMode::kFirst;
  std::chrono::milliseconds stall{60'000};  // a disk that gives nothing for so long has failed
  std::int64_t first_layer = -1;  // the first pass begins at this layer (-1: at the rank's first)
  std::int64_t passes = 0;        // how many there are; 0: unknown, and reading ahead never ends
  // bytes done and in total, while parts are loaded.
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};
  std::function<bool()> interrupted = {};  // polled while a lease waits
  PinMemory pin = {};                      // of memory that a device copies from
  // Default: make_read_queue. Tests put their own disk here.
  std::function<std::unique_ptr<ReadQueue>()> make_queue = {};
  std::int64_t tile_bytes = kHeadTileBytes, gather_bytes = kGatherBytes;  // of ends on disk
};

class LayerStager : public LayerSource {
 public:
  // Loads what is to stay in memory, each byte checked unless verify is off, and begins to read
  // ahead. Throws data_error for a missing or damaged slab before anything runs.
  LayerStager(const LayerStore& store, StagingPlan plan, const StagerOptions& options,
              Timeline& timeline);

  LayerLease lease(std::int64_t layer, PartKind part, NextUse next) override;
  LayerLease lease_ends(PartKind part) override { return ends_->lease(part); }
  void gather(TensorRole table, std::span<const std::int32_t> ids, const UseRows& use) override {
    ends_->gather(table, ids, use);
  }
  void head_matrix(const UseTile& use) override { ends_->head_matrix(use, options_.interrupted); }

  std::int64_t bytes() const;  // of memory: pinned parts, ring, ends
  // For whoever loads more than this holds.
  StoreReader& reader() { return reader_; }
  const char* reads_with() const { return reader_.queue_name(); }

 private:
  struct PinnedPart {
    AlignedBuffer extent;
    std::shared_ptr<void> lock;
    PartTensors tensors;
  };
  // A streamed part that has been leased in this pass and not released for good.
  struct HeldPart {
    std::uint64_t number = 0;
    PartTensors tensors;
  };
  using Key = std::pair<std::int64_t, PartKind>;  // layer, or slab where slabs are shared

  Key key_of(std::int64_t layer, PartKind part) const;
  void require_slabs() const;
  void load_pinned(Timeline& timeline);
  void begin_stream(Timeline& timeline);
  std::unique_ptr<ReadQueue> make_queue() const;

  const LayerStore& store_;
  const StagingPlan plan_;
  const StagerOptions options_;
  StoreReader reader_;
  std::map<Key, PinnedPart> pinned_;
  std::int64_t pinned_bytes_ = 0;
  std::optional<EndTables> ends_;
  std::vector<Key> streamed_;  // one pass: layer and part
  std::unique_ptr<PartStream> stream_;
  std::uint64_t next_ = 0;  // number of the streamed part that is leased next
  std::map<Key, HeldPart> held_;
};

// Everything in memory, as a job without a budget has it.
struct ResidentSlice {
  std::vector<std::pair<std::int64_t, std::int64_t>> layers;  // half-open ranges
  bool embedding = false, head = false;
};
StagingPlan all_in_memory(const ResidentSlice& slice);

}  // namespace stagecoach
