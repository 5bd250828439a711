// What of a rank's slice its device holds, and what is left for the host's memory and disk: the
// planner of two tiers, used twice.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "plan/residency.h"

namespace stagecoach {

// What the parts of a slice take there: of the ends norms and biases, the head's matrix if there is
// room, and a buffer for rows of the embedding on their way.
WeightSizes sizes_on_device(WeightSizes sizes);

// The residency of a device with `memory` bytes for weights, whose "disk" is the host: parts that
// are not pinned pass through slots. `slice` may have no layers. nullopt when not even one fits.
std::optional<Residency> plan_device(const ResidencyRequest& slice, std::int64_t memory);

// The least of such memory.
std::int64_t smallest_device_memory(const ResidencyRequest& slice);

// What the host still has to hold or stream of `slice` beside such a device.
ResidencyRequest beside_device(const ResidencyRequest& slice, const Residency& device);

// The residency of the host for the layers that beside_device left, none of them perhaps.
std::optional<Residency> plan_host(const ResidencyRequest& left);

// What the device has to hold or stream of `slice` where the processor computes so many layers, as
// evenly over the windows as can be.
ResidencyRequest beside_processor(const ResidencyRequest& slice, std::int64_t cpu_layers);

// Where all of a slice is, beside a device.
struct DeviceSplit {
  // By layer of the slice: the processor computes it, from the host's memory. Where others still
  // pass through the device they are spread between them, so that copies go on meanwhile; else they
  // are the last ones of their windows, so that the hidden state crosses as little as can be.
  std::vector<bool> on_cpu;
  Residency device;              // of the other layers
  Residency host;                // of those of them that the device does not hold
  std::int64_t host_memory = 0;  // bytes that host and on_cpu take

  std::int64_t cpu_layers() const;
  bool streams() const { return device.streamed > 0 || host.streamed > 0; }
  std::int64_t crossings = 0;  // of the hidden state in a pass, to the processor and back
};
// With `cpu_layers` of the layers on the processor; slice.memory is the host's, for weights.
// nullopt: does not fit.
std::optional<DeviceSplit> plan_split(const ResidencyRequest& slice, std::int64_t device_memory,
                                      std::int64_t cpu_layers);

}  // namespace stagecoach
