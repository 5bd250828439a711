#include "engine/kv_cache.h"

#include <algorithm>

#include "base/device_granule.h"
#include "base/error.h"

namespace stagecoach {
namespace {

// Few allocations for a long text, and little that a short one leaves unused.
constexpr std::int64_t kSlabBytes = std::int64_t{16} << 20;

std::int64_t pages_for(std::int64_t positions) {
  return (positions + kKvPageTokens - 1) / kKvPageTokens;
}

}  // namespace

KvCache::KvCache(const ModelSpec& spec, KvType type, Backend& backend)
    : backend_(backend), type_(type), page_bytes_(page_bytes(spec, type)) {}

void KvCache::add_layers(std::int64_t begin, std::int64_t end) {
  STAGECOACH_CHECK(sequences_.empty());
  for (std::int64_t layer = begin; layer < end; ++layer)
    slot_of_layer_.emplace(layer, slot_of_layer_.size());
}

std::int64_t KvCache::slab_pages(std::int64_t page_bytes) {
  return std::max<std::int64_t>(1, kSlabBytes / page_bytes);
}

std::int64_t KvCache::device_bytes(std::int64_t pages, std::int64_t page_bytes) {
  const std::int64_t each = slab_pages(page_bytes), slabs = (pages + each - 1) / each;
  return slabs * device_allocation(each * page_bytes);
}

// On the host a page is allocated when it is needed: there it costs a system call at most.
void KvCache::add_slab() {
  const std::int64_t count = backend_.is_host() ? 1 : slab_pages(page_bytes_);
  const Buffer& slab = slabs_.emplace_back(backend_.allocate(count * page_bytes_));
  allocated_bytes_ += slab.bytes();
  for (std::int64_t page = count - 1; page >= 0; --page)
    free_pages_.push_back(slab.data() + page * page_bytes_);
}

void KvCache::grow(Pages& pages, std::int64_t count) {
  while (pages.count() < count) {
    if (free_pages_.empty()) add_slab();
    std::byte* const page = free_pages_.back();
    free_pages_.pop_back();
    pages.keys.push_back(page);
    pages.values.push_back(page + page_bytes_ / 2);
  }
}

void KvCache::shrink(Pages& pages, std::int64_t count) {
  while (pages.count() > count) {
    free_pages_.push_back(pages.keys.back());
    pages.keys.pop_back();
    pages.values.pop_back();
  }
}

KvCache::Sequence& KvCache::sequence(SequenceId id) {
  Sequence& found = sequences_[id];
  found.resize(slot_of_layer_.size());
  return found;
}

void KvCache::reserve(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs) {
  for (const TokenRun& run : runs) {
    Sequence& pages = sequence(run.sequence);
    for (std::int64_t layer = begin; layer < end; ++layer)
      grow(pages[slot_of_layer_.at(layer)], pages_for(run.position + run.count()));
  }
}

std::vector<KvSpan> KvCache::view(std::int64_t layer, std::span<const TokenRun> runs) const {
  const std::size_t slot = slot_of_layer_.at(layer);
  std::vector<KvSpan> spans;
  spans.reserve(runs.size());
  std::int64_t row = 0;
  for (const TokenRun& run : runs) {
    const Pages& pages = sequences_.at(run.sequence)[slot];
    spans.push_back({.row = row,
                     .rows = run.count(),
                     .position = run.position,
                     .key_pages = pages.keys.data(),
                     .value_pages = pages.values.data()});
    row += run.count();
  }
  return spans;
}

void KvCache::truncate(SequenceId id, std::int64_t positions) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  for (Pages& pages : it->second) shrink(pages, pages_for(positions));
}

void KvCache::drop(SequenceId id) {
  truncate(id, 0);
  sequences_.erase(id);
}

void KvCache::drop_layer(std::int64_t layer) {
  const std::size_t slot = slot_of_layer_.at(layer);
  for (auto& [id, pages] : sequences_) shrink(pages[slot], 0);
}

std::byte* KvCache::page(std::int64_t layer, SequenceId id, std::int64_t number) {
  Pages& pages = sequence(id)[slot_of_layer_.at(layer)];
  grow(pages, number + 1);
  return pages.keys[static_cast<std::size_t>(number)];
}

void KvCache::get_page(std::int64_t layer, SequenceId id, std::int64_t number,
                       std::span<std::byte> host) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(host.size()) == page_bytes_);
  backend_.download(host, page(layer, id, number));
}

void KvCache::set_page(std::int64_t layer, SequenceId id, std::int64_t number,
                       std::span<const std::byte> host) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(host.size()) == page_bytes_);
  backend_.upload(page(layer, id, number), host);
}

}  // namespace stagecoach
