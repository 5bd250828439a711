// What a rank's rates are shares of.
#include <utility>

#include "timeline/run_info.h"

namespace stagecoach {

void add_limits(RankUsage& usage, const std::optional<MachineLimits>& limits,
                const std::filesystem::path& store) {
  if (!limits) return;
  usage.memory_bytes_per_s = limits->memory.of(usage.threads);
  const DotLimit& dot = usage.inputs == "int8"   ? limits->int8
                        : usage.inputs == "bf16" ? limits->bf16
                                                 : limits->f32;
  usage.flops_per_s = dot.rate.of(usage.threads);
  usage.disk_bytes_per_s = limits->disk_rate(store).value_or(0);
}

RankUsage with_cached_limits(RankUsage usage, const std::filesystem::path& store) {
  // A study runs many jobs in one process, and a damaged file is worth one warning.
  static const std::optional<MachineLimits> limits = cached_limits();
  add_limits(usage, limits, store);
  return usage;
}

}  // namespace stagecoach
