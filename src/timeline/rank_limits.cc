// What a rank's rates are shares of.
#include <utility>

#include "timeline/run_info.h"

namespace stagecoach {

void add_limits(RankUsage& usage, const std::optional<MachineLimits>& limits,
                const std::filesystem::path& store) {
  if (!limits) return;
  usage.disk_bytes_per_s = limits->disk_rate(store).value_or(0);
  if (!usage.device.empty()) {
    const DeviceLimit* const device = limits->device(usage.device);
    if (device == nullptr) return;
    usage.memory_bytes_per_s = device->memory;
    usage.bus_bytes_per_s = device->to_device;
    // Products of many rows multiply int8 as f16.
    usage.flops_per_s = usage.inputs == "f32"    ? device->f32
                        : usage.inputs == "bf16" ? device->bf16.value_or(device->f32)
                                                 : device->f16;
    return;
  }
  usage.memory_bytes_per_s = limits->memory.of(usage.threads);
  const DotLimit& dot = usage.inputs == "int8"   ? limits->int8
                        : usage.inputs == "bf16" ? limits->bf16
                                                 : limits->f32;
  usage.flops_per_s = dot.rate.of(usage.threads);
}

RankUsage with_cached_limits(RankUsage usage, const std::filesystem::path& store) {
  // A study runs many jobs in one process, and a damaged file is worth one warning.
  static const std::optional<MachineLimits> limits = cached_limits();
  add_limits(usage, limits, store);
  return usage;
}

}  // namespace stagecoach
