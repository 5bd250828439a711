// What of its slice a rank holds in memory, and what streams from its disk: pure arithmetic on
// sizes. docs/staging.md derives the bound and draws the ring.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace stagecoach {

// Bytes of what one rank may hold. All layers are alike.
struct WeightSizes {
  std::int64_t attention = 0, mlp = 0;  // of one layer
  // The embedding and the head: all in memory, or with their large tables on disk (buffers then
  // included). 0 where the rank has none.
  std::int64_t embedding_in_memory = 0, embedding_on_disk = 0;
  std::int64_t head_in_memory = 0, head_on_disk = 0;
  std::int64_t head_matrix = 0;  // what a pass reads of a head on disk
  std::int64_t row_buffer = 0;   // of a device: for rows of the embedding, on their way
  // What embedding and head have in common: a tied head's matrix, on a rank that has both in
  // memory.
  std::int64_t shared = 0;

  // Of a device: what its driver rounds up.
  std::int64_t attention_rounding = 0, mlp_rounding = 0;

  std::int64_t layer() const { return attention + mlp; }
  // Of memory, one layer held.
  std::int64_t layer_memory() const { return layer() + attention_rounding + mlp_rounding; }
};

struct ResidencyRequest {
  WeightSizes sizes;
  std::vector<std::int64_t> windows;  // layers in each of the rank's windows, in ring order
  int ranks = 1;
  std::int64_t memory = 0;       // bytes for weights
  std::int64_t head_sweeps = 1;  // of a pass through a head on disk
  // A pass is one micro-batch (a sequence decodes): ranks compute one after the other, and the ring
  // fills while others do. Else all compute at once, and a layer is read while another is used.
  bool one_micro_batch = true;
};

struct Residency {
  std::vector<bool> pinned;                // by layer, in ring order
  int attention_slots = 0, mlp_slots = 0;  // 0: nothing streams
  bool embedding_in_memory = true, head_in_memory = true;
  std::int64_t memory = 0;    // bytes that this takes
  std::int64_t streamed = 0;  // bytes that a pass reads from this rank's disk
  // What a pass waits for, as bytes of this disk: `streamed` where the disk never rests, more where
  // the ring is too small to bridge the other ranks' turns.
  std::int64_t waited = 0;
};

// The residency that waits least; nullopt when not even the smallest fits.
std::optional<Residency> plan_residency(const ResidencyRequest& request);

// The least memory with which plan_residency finds one: one layer's parts and what cannot stay on
// disk.
std::int64_t smallest_memory(const ResidencyRequest& request);

// DESIGN's bound for a sequence that decodes: the least bytes that one rank's disk streams per
// token, with `slice` bytes of weights, `memory` bytes for them, `ranks` and `rounds`.
double streamed_bound(double slice, double memory, int ranks, int rounds);

// Numbers of rounds worth comparing for `layers` on `ranks`, ascending: 1, 2, 3, 4, 6, 8, 12 … and
// the most there are (windows of one layer).
std::vector<int> candidate_rounds(std::int64_t layers, int ranks);

}  // namespace stagecoach
