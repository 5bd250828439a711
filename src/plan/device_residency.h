// What of a rank's slice its device holds, and what is left for the host's memory and disk: the
// planner of two tiers, used twice.
#pragma once

#include <cstdint>
#include <optional>

#include "plan/residency.h"

namespace stagecoach {

// What the parts of a slice take there: of the ends norms and biases, the head's matrix if there is
// room, and a buffer for rows of the embedding on their way.
WeightSizes sizes_on_device(WeightSizes sizes);

// The residency of a device with `memory` bytes for weights, whose "disk" is the host: parts that
// are not pinned pass through slots. nullopt when not even one layer fits.
std::optional<Residency> plan_device(const ResidencyRequest& slice, std::int64_t memory);

// The least of such memory.
std::int64_t smallest_device_memory(const ResidencyRequest& slice);

// What the host still has to hold or stream of `slice` beside such a device.
ResidencyRequest beside_device(const ResidencyRequest& slice, const Residency& device);

// The residency of the host for the layers that beside_device left, none of them perhaps.
std::optional<Residency> plan_host(const ResidencyRequest& left);

}  // namespace stagecoach
