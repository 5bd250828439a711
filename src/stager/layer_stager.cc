#include "stager/layer_stager.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/log.h"

namespace stagecoach {
namespace {

// Reads under way at once: what it takes to keep an NVMe drive busy with blocks of a megabyte.
constexpr int kDepth = 16;
constexpr PartKind kLayerParts[] = {PartKind::kAttention, PartKind::kMlp};

bool in_memory(const StagedLayer& layer) {
  return layer.pinned && !layer.on_device;
}

}  // namespace

LayerStager::LayerStager(const LayerStore& store, StagingPlan plan, const StagerOptions& options,
                         Timeline& timeline)
    : store_(store),
      plan_(std::move(plan)),
      options_(options),
      reader_(store, make_queue(), options.stall, options.interrupted) {
  require_slabs();
  load_pinned(timeline);
  ends_.emplace(reader_,
                EndOptions{.embedding = plan_.embedding,
                           .head = plan_.head,
                           .verify = options_.verify,
                           .stall = options_.stall,
                           .make_queue = [this] { return make_queue(); },
                           .tile_bytes = options_.tile_bytes,
                           .gather_bytes = options_.gather_bytes,
                           .pin = options_.pin},
                timeline);
  if (plan_.streams()) begin_stream(timeline);
}

std::unique_ptr<ReadQueue> LayerStager::make_queue() const {
  return options_.make_queue ? options_.make_queue() : make_read_queue(kDepth);
}

// Names a slab that the store lacks before minutes of loading.
void LayerStager::require_slabs() const {
  if (plan_.embedding != Residence::kAbsent ||
      (plan_.head != Residence::kAbsent && store_.manifest().spec.tied_head))
    store_.open_slab(store_.embedding_slab());
  for (const StagedLayer& layer : plan_.layers) store_.open_slab(store_.layer_slab(layer.layer));
  if (plan_.head != Residence::kAbsent) store_.open_slab(store_.head_slab());
}

LayerStager::Key LayerStager::key_of(std::int64_t layer, PartKind part) const {
  return {plan_.share_slabs ? store_.manifest().layer_slab[static_cast<std::size_t>(layer)] : layer,
          part};
}

void LayerStager::load_pinned(Timeline& timeline) {
  std::int64_t total = 0, done = 0;
  std::set<Key> wanted;
  for (const StagedLayer& layer : plan_.layers)
    if (in_memory(layer) && wanted.insert(key_of(layer.layer, PartKind::kAttention)).second)
      for (const PartEntry& part : store_.layer_slab(layer.layer).parts) total += part.bytes;
  for (const StagedLayer& layer : plan_.layers) {
    if (!in_memory(layer)) continue;
    const SlabEntry& slab = store_.layer_slab(layer.layer);
    for (const PartEntry& part : slab.parts) {
      const Key key = key_of(layer.layer, part.kind);
      if (pinned_.contains(key)) continue;
      ScopedSpan timed(timeline, {.kind = SpanKind::kRead,
                                  .layer = static_cast<std::int32_t>(layer.layer),
                                  .bytes = part.bytes});
      PinnedPart loaded{
          .extent = reader_.read_part(slab, part, options_.verify != VerifyMode::kOff),
          .lock = nullptr,
          .tensors = {}};
      // What the processor reads is copied nowhere.
      if (options_.pin && !layer.on_cpu) loaded.lock = options_.pin(loaded.extent.span());
      loaded.tensors = part_tensors(part, loaded.extent.data());
      pinned_.emplace(key, std::move(loaded));
      pinned_bytes_ += part.bytes;
      done += part.bytes;
      if (options_.progress) options_.progress(done, total);
    }
  }
}

void LayerStager::begin_stream(Timeline& timeline) {
  std::vector<StreamedPart> parts;
  std::uint64_t first = 0;
  bool reached = options_.first_layer < 0;
  for (const StagedLayer& layer : plan_.layers) {
    reached = reached || layer.layer >= options_.first_layer;
    if (layer.pinned || layer.on_device) continue;
    const SlabEntry& slab = store_.layer_slab(layer.layer);
    const DirectFile file = reader_.files().open(slab);
    for (const PartKind kind : kLayerParts) {
      const PartEntry* const part = slab.part(kind);
      STAGECOACH_CHECK(part != nullptr);
      if (!reached) ++first;
      const bool mlp = kind == PartKind::kMlp;
      parts.push_back(
          {.descriptor = file.descriptor,
           .direct = file.direct,
           .offset = part->offset,
           .bytes = part->bytes,
           .kind = mlp ? 1 : 0,
           .checksum = part->checksum,
           .layer = static_cast<std::int32_t>(layer.layer),
           .name = part_label(store_, slab, *part),
           .hint = store_.repair_hint(slab),
           .content =
               2 * store_.manifest().layer_slab[static_cast<std::size_t>(layer.layer)] + mlp});
      streamed_.emplace_back(layer.layer, kind);
    }
  }
  next_ = first;
  const CheckParts check = options_.verify == VerifyMode::kAlways ? CheckParts::kAlways
                           : options_.verify == VerifyMode::kOff  ? CheckParts::kNever
                                                                  : CheckParts::kFirstTime;
  PartStreamOptions stream{.slots = {plan_.attention_slots, plan_.mlp_slots},
                           .check = check,
                           .first = first,
                           .stall = options_.stall,
                           .pin = options_.pin};
  if (options_.passes > 0) stream.end = static_cast<std::uint64_t>(options_.passes) * parts.size();
  spdlog::debug("streaming {} of {} layers through {} + {} slots, reading with {}{}",
                parts.size() / 2, plan_.layers.size(), plan_.attention_slots, plan_.mlp_slots,
                reader_.queue_name(), parts.front().direct ? ", direct" : ", buffered");
  stream_ = std::make_unique<PartStream>(std::move(parts), stream, make_queue(), timeline);
}

LayerLease LayerStager::lease(std::int64_t layer, PartKind part, NextUse next) {
  if (const auto pinned = pinned_.find(key_of(layer, part)); pinned != pinned_.end())
    return {pinned->second.tensors, nullptr};
  const Key key{layer, part};
  auto held = held_.find(key);
  if (held == held_.end()) {
    // Whoever leases in another order would get another layer's weights.
    STAGECOACH_CHECK(stream_ != nullptr && streamed_[next_ % streamed_.size()] == key);
    const std::byte* const data = stream_->wait(next_, options_.interrupted);
    const PartEntry* const entry = store_.layer_slab(layer).part(part);
    held = held_.emplace(key, HeldPart{next_++, part_tensors(*entry, data)}).first;
  }
  if (next == NextUse::kThisPass) return {held->second.tensors, nullptr};
  return {held->second.tensors, [this, key] {
            const auto ended = held_.find(key);
            stream_->release(ended->second.number);
            held_.erase(ended);
          }};
}

std::int64_t LayerStager::bytes() const {
  return pinned_bytes_ + ends_->bytes() + (stream_ != nullptr ? stream_->slot_bytes() : 0);
}

StagingPlan all_in_memory(const ResidentSlice& slice) {
  StagingPlan plan;
  for (const auto& [begin, end] : slice.layers)
    for (std::int64_t layer = begin; layer < end; ++layer) plan.layers.push_back({layer, true});
  plan.embedding = slice.embedding ? Residence::kMemory : Residence::kAbsent;
  plan.head = slice.head ? Residence::kMemory : Residence::kAbsent;
  plan.share_slabs = true;
  return plan;
}

}  // namespace stagecoach
