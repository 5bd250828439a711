#include "plan/cpu_layers.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace stagecoach {
namespace {

// A job of which nothing streams need not go in passes: what streams has to save more than this.
constexpr double kWorthPasses = 0.9;

// 1, 2, 3, 4, 6, 8, 12 … and `most`: times change slowly, and every plan costs a search.
std::vector<std::int64_t> counts_up_to(std::int64_t most) {
  std::vector<std::int64_t> counts;
  for (std::int64_t step = 1; step < most; step *= 2)
    for (const std::int64_t count : {step, step + step / 2})
      if (count < most && (counts.empty() || count > counts.back())) counts.push_back(count);
  if (most > 0) counts.push_back(most);
  return counts;
}

}  // namespace

// Copies go on while either side computes, except that with a single slot the micro-batches of a
// layer are all through the device before the next one comes.
double pass_seconds(const DeviceSplit& split, const PassCost& cost, const SplitRates& rates) {
  const std::int64_t on_cpu = split.cpu_layers();
  const std::int64_t on_device = static_cast<std::int64_t>(split.on_cpu.size()) - on_cpu;
  const double layer = split.device.streamed > 0 ? cost.cpu_layer_beside_copies : cost.cpu_layer;
  const double cpu =
      static_cast<double>(on_cpu) * layer + static_cast<double>(split.crossings) * cost.crossing;
  const double device = static_cast<double>(on_device) * cost.device_layer;
  const auto waited = [&](const Residency& residency) {
    return static_cast<double>(cost.one_micro_batch ? residency.waited : residency.streamed);
  };
  const double copying = waited(split.device) / rates.bus;
  const bool in_turns = !cost.one_micro_batch && split.device.attention_slots == 1;
  return std::max(
      {waited(split.host) / rates.disk, cpu + device, copying + (in_turns ? device : 0)});
}

double job_seconds(const DeviceSplit& split, const std::vector<PassCost>& costs,
                   const SplitRates& rates) {
  double seconds = 0;
  for (const PassCost& cost : costs) seconds += cost.passes * pass_seconds(split, cost, rates);
  return seconds;
}

std::optional<DeviceSplit> best_split(const SplitOf& split_of, std::int64_t layers,
                                      const std::vector<PassCost>& costs, const SplitRates& rates) {
  auto best = split_of(0);
  if (best && best->device.streamed == 0) return best;
  constexpr double kNever = std::numeric_limits<double>::infinity();
  double least = kNever;
  if (best) {
    layers = std::count(best->device.pinned.begin(), best->device.pinned.end(), false);
    least = job_seconds(*best, costs, rates);
  }
  double least_in_memory = least;
  std::optional<DeviceSplit> in_memory;
  for (const std::int64_t count : counts_up_to(layers)) {
    auto split = split_of(count);
    if (!split) continue;
    const double seconds = job_seconds(*split, costs, rates);
    if (!split->streams() && seconds < least_in_memory) {
      least_in_memory = seconds;
      in_memory = split;
    }
    if (seconds >= least) continue;
    least = seconds;
    best = std::move(split);
  }
  return in_memory && kWorthPasses * least_in_memory < least ? in_memory : best;
}

}  // namespace stagecoach
