// Slabs on their way to this host from one or several others that have them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/agent_client.h"
#include "launcher/key.h"
#include "launcher/store_files.h"

namespace stagecoach {

struct SlabOrder {
  const SlabEntry* slab = nullptr;
  std::vector<SlabSource> sources;
};

// Fetches them one after the other, a slab's chunks from all of its sources at once; while one slab
// is checked, the next one comes. A source that fails is left to the others. `report` is called
// often, with bytes. Throws what the last source of a slab said, resource_error for a full disk;
// what has come stays, for the next try.
void pull_slabs(const std::filesystem::path& store, const std::vector<SlabOrder>& orders,
                const Key& key, const Report& report);

}  // namespace stagecoach
