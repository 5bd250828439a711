// The weights of a rank whose device has memory of its own: parts that stay there for the whole
// job, and parts that pass through a ring of slots, copied from page-locked host memory beside the
// ops.
//
//   disk ──direct reads──▶ host: pinned layers, ring   (LayerStager)
//                             │ copies, one thread, in ring order
//                             ▼
//   device: resident parts, slots ──▶ ops
//
// Nobody waits for a copy but the device: ops wait for the event of their part's copy, a copy for
// the event of the ops that last used its slot, and the thread for a copy only before it gives the
// host's memory back.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "engine/layer_source.h"
#include "stager/layer_stager.h"

namespace stagecoach {

class DeviceStager : public LayerSource {
 public:
  // `host` was made with the same plan and options. Loads what is to stay on the device, each byte
  // checked unless verify is off, and begins to copy ahead. Throws as LayerStager does, and
  // resource_error where the device has too little memory.
  DeviceStager(LayerStager& host, const LayerStore& store, const StagingPlan& plan,
               const StagerOptions& options, Backend& device, Timeline& timeline);
  ~DeviceStager() override;
  DeviceStager(const DeviceStager&) = delete;
  DeviceStager& operator=(const DeviceStager&) = delete;

  LayerLease lease(std::int64_t layer, PartKind part, NextUse next) override;
  bool stays(std::int64_t layer) const override {
    return resident_.contains(key_of(layer, PartKind::kAttention)) &&
           resident_.contains(key_of(layer, PartKind::kMlp));
  }
  LayerLease lease_ends(PartKind part) override;
  void gather(TensorRole table, std::span<const std::int32_t> ids, const UseRows& use) override;
  void head_matrix(const UseTile& use) override;

  std::int64_t bytes() const;  // of the device's memory, for weights

 private:
  using Key = std::pair<std::int64_t, PartKind>;  // layer, or slab where slabs are shared
  struct ResidentPart {
    Buffer memory;
    PartTensors tensors{};
  };
  struct End {
    std::vector<Buffer> memory;
    PartTensors tensors{};
  };
  struct Slot {
    Buffer memory;
    EventPtr used;  // when the ops that last read it are done
  };
  // A part of the endless sequence that repeats a pass.
  struct StreamedPart {
    std::int64_t layer = 0;
    PartKind kind = PartKind::kAttention;
    const PartEntry* entry = nullptr;
    std::uint64_t index_in_kind = 0;
  };
  struct HeldPart {
    std::uint64_t number = 0;
    PartTensors tensors{};
  };

  Key key_of(std::int64_t layer, PartKind part) const;
  class LoadTiles;
  void load_resident();
  void upload_part(const SlabEntry& slab, const PartEntry& part, LoadTiles& tiles, std::byte* to);
  void load_end(PartKind kind, std::optional<End>& end);
  void load_head_matrix();
  void begin_stream();

  void copy_all();
  bool wait_for_slot(std::uint64_t number, const std::function<void()>& meanwhile);
  const StreamedPart& part(std::uint64_t number) const { return parts_[number % parts_.size()]; }
  std::uint64_t ordinal(std::uint64_t number) const;
  Slot& slot_of(std::uint64_t number);
  // The part that was in the slot of `number` before, if any.
  std::optional<std::uint64_t> previous_in_slot(std::uint64_t number) const;
  EventPtr wait_copied(std::uint64_t number);
  void release(std::uint64_t number) noexcept;

  LayerStager& host_;
  const LayerStore& store_;
  const StagingPlan plan_;
  const StagerOptions options_;
  Backend& device_;
  Timeline& timeline_;

  std::map<Key, ResidentPart> resident_;
  std::optional<End> embedding_, head_;
  Buffer head_memory_;      // the head's matrix
  TensorView head_matrix_;  // where all of it stays
  // Else its tiles take turns: one is copied while ops read the other.
  Slot head_tiles_[2];
  Buffer rows_;  // of a table, on their way

  std::vector<StreamedPart> parts_;        // of one pass
  std::vector<std::uint64_t> of_kind_[2];  // attention, MLP: indices into parts_
  std::vector<Slot> slots_[2];
  std::uint64_t first_ = 0, end_ = 0;
  std::uint64_t next_ = 0;        // number of the part that is leased next
  std::map<Key, HeldPart> held_;  // leased in this pass and not released for good

  std::mutex mutex_;
  std::condition_variable copied_changed_, released_changed_;
  std::map<std::uint64_t, EventPtr> copied_;  // queued copies of parts not yet leased
  std::uint64_t released_ = 0;                // all parts before
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stagecoach
