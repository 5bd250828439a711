#include "stager/resident_source.h"

#include <set>

#include "base/error.h"

namespace stagecoach {
namespace {

// The slabs of a slice, each once, with the first layer that needs it (-1: not a layer's).
std::vector<std::pair<int, std::int32_t>> slabs_of(const Manifest& manifest,
                                                   const ResidentSlice& slice) {
  std::vector<std::pair<int, std::int32_t>> slabs;
  std::set<int> seen;
  const auto add = [&](int slab, std::int64_t layer) {
    if (slab >= 0 && seen.insert(slab).second)
      slabs.emplace_back(slab, static_cast<std::int32_t>(layer));
  };
  if (slice.embedding || (slice.head && manifest.spec.tied_head)) add(manifest.embedding_slab, -1);
  for (const auto& [begin, end] : slice.layers)
    for (std::int64_t layer = begin; layer < end; ++layer)
      add(manifest.layer_slab.at(static_cast<std::size_t>(layer)), layer);
  if (slice.head) add(manifest.head_slab, -1);
  return slabs;
}

}  // namespace

ResidentSource::ResidentSource(const LayerStore& store, const ResidentSlice& slice,
                               VerifyMode verify, Timeline& timeline, const Progress& progress)
    : manifest_(store.manifest()) {
  // These name a slab that the store lacks; slabs_of would skip it.
  if (slice.embedding || (slice.head && manifest_.spec.tied_head)) store.embedding_slab();
  for (const auto& [begin, end] : slice.layers)
    for (std::int64_t layer = begin; layer < end; ++layer) store.layer_slab(layer);
  if (slice.head) store.head_slab();

  const std::int64_t total = bytes_needed(manifest_, slice);
  for (const auto& [slab, layer] : slabs_of(manifest_, slice)) {
    load(store, manifest_.slabs[static_cast<std::size_t>(slab)], verify, timeline, layer);
    if (progress) progress(bytes_, total);
  }
}

void ResidentSource::load(const LayerStore& store, const SlabEntry& slab, VerifyMode verify,
                          Timeline& timeline, std::int32_t layer) {
  // A tied head without norm, bias or projection holds nothing, and is leased all the same.
  if (slab.kind == SlabKind::kHead) parts_[{&slab, PartKind::kHead}] = {};
  for (const PartEntry& part : slab.parts) {
    LoadedPart& loaded = parts_[{&slab, part.kind}];
    loaded.extent = AlignedBuffer(part.bytes);
    {
      ScopedSpan timed(timeline, {.kind = SpanKind::kRead, .layer = layer, .bytes = part.bytes});
      store.read_part(slab, part, loaded.extent.span(), verify != VerifyMode::kOff);
    }
    loaded.tensors = part_tensors(part, loaded.extent.data());
    bytes_ += part.bytes;
  }
}

LayerLease ResidentSource::lease(std::int64_t layer, PartKind part) {
  int slab = -1;
  switch (part) {
    case PartKind::kEmbedding:
      slab = manifest_.embedding_slab;
      break;
    case PartKind::kHead:
      slab = manifest_.head_slab;
      break;
    case PartKind::kAttention:
    case PartKind::kMlp:
      slab = manifest_.layer_slab.at(static_cast<std::size_t>(layer));
      break;
  }
  STAGECOACH_CHECK(slab >= 0);
  const auto it = parts_.find({&manifest_.slabs[static_cast<std::size_t>(slab)], part});
  STAGECOACH_CHECK(it != parts_.end());
  return {it->second.tensors, nullptr};
}

std::int64_t ResidentSource::bytes_needed(const Manifest& manifest, const ResidentSlice& slice) {
  std::int64_t bytes = 0;
  for (const auto& [slab, layer] : slabs_of(manifest, slice))
    for (const PartEntry& part : manifest.slabs[static_cast<std::size_t>(slab)].parts)
      bytes += part.bytes;
  return bytes;
}

}  // namespace stagecoach
