// Keys and values of this rank's layers, per sequence, in pages of kKvPageTokens positions.
//
// One allocation holds one page of every layer of one sequence, because a sequence grows in all of
// them at once; pages of dropped sequences are reused.
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
  KvCache(const ModelSpec& spec, Backend& backend);
  // Declares the layers that it holds, before any sequence comes.
  void add_layers(std::int64_t begin, std::int64_t end);

  // Makes room for the positions of `runs` in every layer. Throws resource_error when memory ends.
  void reserve(std::span<const TokenRun> runs);

  // Spans of `runs` in one layer, as kernels want them; valid until the next reserve, truncate or
  // drop.
  std::vector<KvSpan> view(std::int64_t layer, std::span<const TokenRun> runs) const;

  void truncate(SequenceId sequence, std::int64_t positions);  // keeps the first `positions`
  void drop(SequenceId sequence);

  std::int64_t bytes() const { return allocated_bytes_; }

 private:
  struct Sequence {
    std::vector<Buffer> pages;  // each: (layers, 2, kv_heads · head_dim · kKvPageTokens) float32
    // Per local layer, page pointers in the form the kernels take.
    std::vector<std::vector<float*>> key_pages, value_pages;
  };
  void push_page(Sequence& sequence);
  void pop_page(Sequence& sequence);

  Backend& backend_;
  std::int64_t page_floats_;  // of keys alone, in one layer
  std::map<std::int64_t, std::size_t> slot_of_layer_;
  std::map<SequenceId, Sequence> sequences_;
  std::vector<Buffer> free_pages_;
  std::int64_t allocated_bytes_ = 0;
};

}  // namespace stagecoach
