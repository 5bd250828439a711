// What a rank holds in memory and what it streams: decided by src/plan/residency, carried out here.
#pragma once

#include <cstdint>
#include <vector>

namespace stagecoach {

// Where a large table is while a job runs.
enum class Residence : std::uint8_t { kAbsent, kMemory, kDisk };

struct StagedLayer {
  std::int64_t layer = 0;
  bool pinned = true;      // held for the whole job; else streamed
  bool on_device = false;  // held in the device's memory for the whole job, and not in the host's
  // Beside a device: the processor computes it, from the host's memory. pinned, too.
  bool on_cpu = false;
};

// Of a device with memory of its own.
struct DevicePlan {
  int attention_slots = 0, mlp_slots = 0;  // of its ring; 0 where no layer passes through it
  bool head = true;                        // holds the head's matrix; else that passes in tiles

  bool streams() const { return attention_slots > 0; }
};

struct StagingPlan {
  std::vector<StagedLayer> layers;         // one pass, in ring order
  int attention_slots = 0, mlp_slots = 0;  // of the host's ring; 0 when nothing is streamed
  // On disk: rows of the embedding are gathered, the head's matrix streams in tiles.
  Residence embedding = Residence::kAbsent, head = Residence::kAbsent;
  // Layers that share a slab (create --distinct-layers) share its memory. A plan under a budget
  // takes them for different ones, so that such a store behaves like the model it stands for.
  bool share_slabs = false;
  DevicePlan device = {};

  bool streams() const { return attention_slots > 0; }
};

// Bytes of the two buffers through which a head on disk passes.
inline constexpr std::int64_t kHeadTileBytes = std::int64_t{16} << 20;
// Bytes of rows of a table on disk that are in memory at once.
inline constexpr std::int64_t kGatherBytes = std::int64_t{4} << 20;

}  // namespace stagecoach
