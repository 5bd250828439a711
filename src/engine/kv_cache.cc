#include "engine/kv_cache.h"

#include <utility>

#include "base/error.h"

namespace stagecoach {

KvCache::KvCache(const ModelSpec& spec, Backend& backend)
    : backend_(backend), page_floats_(spec.key_value_size() * kKvPageTokens) {}

void KvCache::add_layers(std::int64_t begin, std::int64_t end) {
  STAGECOACH_CHECK(sequences_.empty());
  for (std::int64_t layer = begin; layer < end; ++layer)
    slot_of_layer_.emplace(layer, slot_of_layer_.size());
}

void KvCache::push_page(Sequence& sequence) {
  const std::size_t layers = slot_of_layer_.size();
  Buffer page;
  if (free_pages_.empty()) {
    page = backend_.allocate(static_cast<std::int64_t>(layers) * 2 * page_floats_ *
                             static_cast<std::int64_t>(sizeof(float)));
    allocated_bytes_ += page.bytes();
  } else {
    page = std::move(free_pages_.back());
    free_pages_.pop_back();
  }
  sequence.key_pages.resize(layers);
  sequence.value_pages.resize(layers);
  for (std::size_t slot = 0; slot < layers; ++slot) {
    float* base = page.f32() + static_cast<std::int64_t>(slot) * 2 * page_floats_;
    sequence.key_pages[slot].push_back(base);
    sequence.value_pages[slot].push_back(base + page_floats_);
  }
  sequence.pages.push_back(std::move(page));
}

void KvCache::pop_page(Sequence& sequence) {
  free_pages_.push_back(std::move(sequence.pages.back()));
  sequence.pages.pop_back();
  for (auto& pages : sequence.key_pages) pages.pop_back();
  for (auto& pages : sequence.value_pages) pages.pop_back();
}

void KvCache::reserve(std::span<const TokenRun> runs) {
  for (const TokenRun& run : runs) {
    Sequence& sequence = sequences_[run.sequence];
    const std::int64_t pages = (run.position + run.count() + kKvPageTokens - 1) / kKvPageTokens;
    while (static_cast<std::int64_t>(sequence.pages.size()) < pages) push_page(sequence);
  }
}

std::vector<KvSpan> KvCache::view(std::int64_t layer, std::span<const TokenRun> runs) const {
  const std::size_t slot = slot_of_layer_.at(layer);
  std::vector<KvSpan> spans;
  spans.reserve(runs.size());
  std::int64_t row = 0;
  for (const TokenRun& run : runs) {
    const Sequence& sequence = sequences_.at(run.sequence);
    spans.push_back({.row = row,
                     .rows = run.count(),
                     .position = run.position,
                     .key_pages = sequence.key_pages[slot].data(),
                     .value_pages = sequence.value_pages[slot].data()});
    row += run.count();
  }
  return spans;
}

void KvCache::truncate(SequenceId id, std::int64_t positions) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  const std::int64_t pages = (positions + kKvPageTokens - 1) / kKvPageTokens;
  while (static_cast<std::int64_t>(it->second.pages.size()) > pages) pop_page(it->second);
}

void KvCache::drop(SequenceId id) {
  truncate(id, 0);
  sequences_.erase(id);
}

}  // namespace stagecoach
