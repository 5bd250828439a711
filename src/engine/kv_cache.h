// Keys and values of this rank's layers, per sequence, in pages of kKvPageTokens positions.
//
// Each layer has pages of its own: a pass that streams layers and reads none of their keys again
// (score) gives a layer's pages to the next layer. Pages that are dropped are reused. A device with
// memory of its own is asked for slabs of several pages: it may stand still for an allocation, and
// rounds each up.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/batch.h"
#include "model/model_spec.h"

namespace stagecoach {

class KvCache {
 public:
  KvCache(const ModelSpec& spec, KvType type, Backend& backend);
  // Declares the layers that it holds, before any sequence comes.
  void add_layers(std::int64_t begin, std::int64_t end);

  // Makes room for the positions of `runs` in layers [begin, end). Throws resource_error when
  // memory ends.
  void reserve(std::int64_t begin, std::int64_t end, std::span<const TokenRun> runs);

  // Spans of `runs` in one layer, as kernels want them; valid until the next reserve, truncate or
  // drop.
  std::vector<KvSpan> view(std::int64_t layer, std::span<const TokenRun> runs) const;

  void truncate(SequenceId sequence, std::int64_t positions);  // keeps the first `positions`
  void drop(SequenceId sequence);
  // Forgets what every sequence has in `layer`.
  void drop_layer(std::int64_t layer);

  KvType type() const { return type_; }

  // Keys, then values, of one page (kernels/include/kv_page.h), half of page_bytes() each, to and
  // from host memory. For whoever keeps them on disk; pages that are not there are made.
  void get_page(std::int64_t layer, SequenceId sequence, std::int64_t number,
                std::span<std::byte> host);
  void set_page(std::int64_t layer, SequenceId sequence, std::int64_t number,
                std::span<const std::byte> host);
  std::int64_t page_bytes() const { return page_bytes_; }

  std::int64_t bytes() const { return allocated_bytes_; }
  // Of one page in one layer.
  static std::int64_t page_bytes(const ModelSpec& spec, KvType type) {
    return 2 * spec.num_key_value_heads * kv_head_bytes(type, spec.head_dim);
  }
  // Of a device's memory for so many pages, with what it rounds up.
  static std::int64_t device_bytes(std::int64_t pages, std::int64_t page_bytes);

 private:
  // One layer of one sequence.
  struct Pages {
    std::int64_t count() const { return static_cast<std::int64_t>(keys.size()); }
    std::vector<std::byte*> keys, values;  // of each page, in the form the kernels take
  };
  using Sequence = std::vector<Pages>;                      // by slot of layer
  static std::int64_t slab_pages(std::int64_t page_bytes);  // of a device
  void add_slab();
  void grow(Pages& pages, std::int64_t count);
  void shrink(Pages& pages, std::int64_t count);
  Sequence& sequence(SequenceId id);
  std::byte* page(std::int64_t layer, SequenceId id, std::int64_t number);

  Backend& backend_;
  KvType type_;
  std::int64_t page_bytes_;  // keys and values
  std::map<std::int64_t, std::size_t> slot_of_layer_;
  std::map<SequenceId, Sequence> sequences_;
  std::vector<Buffer> slabs_;
  std::vector<std::byte*> free_pages_;  // each: keys, then values
  std::int64_t allocated_bytes_ = 0;
};

}  // namespace stagecoach
