// What a rank's rates are shares of.
#include <utility>

#include "timeline/run_info.h"

namespace stagecoach {

void add_limits(RankUsage& usage, const std::optional<MachineLimits>& limits,
                const std::filesystem::path& store) {
  if (!limits) return;
  usage.memory_bytes_per_s = limits->memory.of(usage.threads);
  usage.f32_flops_per_s = limits->f32.rate.of(usage.threads);
  usage.disk_bytes_per_s = limits->disk_rate(store).value_or(0);
}

RankUsage with_cached_limits(RankUsage usage, const std::filesystem::path& store) {
  // A study runs many jobs in one process, and a damaged file is worth one warning.
  static const std::optional<MachineLimits> limits = cached_limits();
  add_limits(usage, limits, store);
  return usage;
}

}  // namespace stagecoach
