// How drivers of GPUs give memory away.
#pragma once

#include <cstdint>

namespace stagecoach {

// Large allocations come in whole granules. Small ones share them.
inline constexpr std::int64_t kDeviceGranule = std::int64_t{2} << 20;

// What one allocation takes.
constexpr std::int64_t device_allocation(std::int64_t bytes) {
  if (bytes < kDeviceGranule / 2) return bytes;
  return (bytes + kDeviceGranule - 1) / kDeviceGranule * kDeviceGranule;
}

}  // namespace stagecoach
