// Which rank runs which layers. Pure functions of the model's sizes and the job's flags: every rank
// computes the same plan, and the handshake compares hashes.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/json.h"
#include "model/model_spec.h"

namespace stagecoach {

// Layers [begin, end), run by `rank`. Windows follow one another in ring order.
struct Window {
  std::int64_t begin = 0, end = 0;
  int rank = 0;
  bool operator==(const Window&) const = default;
};

struct StagePlan {
  int ranks = 1;
  std::vector<Window> windows;

  std::int64_t layer_begin() const { return windows.front().begin; }
  std::int64_t layer_end() const { return windows.back().end; }
  int last_rank() const { return windows.back().rank; }
  std::vector<std::pair<std::int64_t, std::int64_t>> layers_of(int rank) const;
  // "layers 0:5", "layers 0:2,8:10"; of many windows the first ones and their number.
  std::string describe(int rank) const;
  std::int64_t largest_window() const;  // layers
};

// Bytes that a rank holds for each thing; what slices are balanced by.
struct PlanCosts {
  std::int64_t layer_bytes = 0;
  std::int64_t embedding_bytes = 0;  // of the first window's rank
  std::int64_t head_bytes = 0;       // of the last window's rank (a tied head: with the embedding)
};

// Contiguous windows over layers [begin, end), `rounds` for each rank, that minimise the largest
// window's bytes. Where ranks · rounds is more than there are layers, windows are of one layer and
// the last ranks have one fewer. Throws usage_error when a round would have no layer at all.
StagePlan balanced_plan(const PlanCosts& costs, std::int64_t begin, std::int64_t end, int ranks,
                        int rounds);

// "0:5,5:12,…": one window per rank, or with rounds a multiple of that, in ring order, covering
// [begin, end) without gaps; the last round may be cut short. Throws usage_error naming the window
// that does not fit.
StagePlan explicit_plan(const std::string& windows, std::int64_t begin, std::int64_t end,
                        int ranks);

// "0:2,2:5,…", as --windows takes it.
std::string windows_flag(const StagePlan& plan);

// "A:B", half-open. Throws usage_error unless 0 ≤ A < B ≤ limit.
std::pair<std::int64_t, std::int64_t> parse_layer_range(const std::string& text,
                                                        std::int64_t limit);

Json to_json(const StagePlan& plan);
std::uint64_t plan_hash(const StagePlan& plan);

}  // namespace stagecoach
