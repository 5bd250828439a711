#include "plan/device_residency.h"

#include <algorithm>
#include <numeric>

#include "base/device_granule.h"
#include "base/error.h"

namespace stagecoach {
namespace {

ResidencyRequest device_request(const ResidencyRequest& slice, std::int64_t memory) {
  ResidencyRequest request = slice;
  request.sizes = sizes_on_device(slice.sizes);
  request.memory = memory;
  return request;
}

// How many layers of each window the processor computes.
std::vector<std::int64_t> cpu_layers_of_windows(const ResidencyRequest& slice,
                                                std::int64_t cpu_layers) {
  const std::int64_t layers =
      std::accumulate(slice.windows.begin(), slice.windows.end(), std::int64_t{0});
  STAGECOACH_CHECK(cpu_layers >= 0 && cpu_layers <= layers);
  std::vector<std::int64_t> counts;
  std::int64_t begin = 0;
  for (const std::int64_t window : slice.windows) {
    const std::int64_t end = begin + window;
    counts.push_back(end * cpu_layers / layers - begin * cpu_layers / layers);
    begin = end;
  }
  return counts;
}

}  // namespace

WeightSizes sizes_on_device(WeightSizes sizes) {
  if (sizes.embedding_in_memory > 0)
    sizes.embedding_in_memory = sizes.embedding_on_disk =
        std::min(sizes.embedding_on_disk, sizes.embedding_in_memory) + sizes.row_buffer;
  sizes.shared = 0;
  sizes.attention_rounding = device_allocation(sizes.attention) - sizes.attention;
  sizes.mlp_rounding = device_allocation(sizes.mlp) - sizes.mlp;
  const std::int64_t matrix_rounding = device_allocation(sizes.head_matrix) - sizes.head_matrix;
  // Its tiles are whole granules, but where they would take no less than all of it.
  if (sizes.head_on_disk == sizes.head_in_memory) sizes.head_on_disk += matrix_rounding;
  sizes.head_in_memory += matrix_rounding;
  return sizes;
}

std::optional<Residency> plan_device(const ResidencyRequest& slice, std::int64_t memory) {
  return plan_host(device_request(slice, memory));
}

std::int64_t smallest_device_memory(const ResidencyRequest& slice) {
  const std::int64_t least = smallest_memory(device_request(slice, 0));
  return slice.windows.empty() ? least - sizes_on_device(slice.sizes).layer_memory() : least;
}

ResidencyRequest beside_device(const ResidencyRequest& slice, const Residency& device) {
  ResidencyRequest left = slice;
  std::size_t layer = 0;
  left.windows.clear();
  for (const std::int64_t layers : slice.windows) {
    std::int64_t streamed = 0;
    for (std::int64_t i = 0; i < layers; ++i) streamed += device.pinned[layer++] ? 0 : 1;
    if (streamed > 0) left.windows.push_back(streamed);
  }
  if (device.head_in_memory) {
    // Read once, on its way to the device.
    left.sizes.head_in_memory = left.sizes.head_on_disk;
    left.sizes.shared = 0;
    left.head_sweeps = 0;
  }
  return left;
}

std::optional<Residency> plan_host(const ResidencyRequest& left) {
  if (!left.windows.empty()) return plan_residency(left);
  const WeightSizes& sizes = left.sizes;
  const std::int64_t all = sizes.embedding_in_memory + sizes.head_in_memory - sizes.shared;
  const std::int64_t least = sizes.embedding_on_disk + sizes.head_on_disk;
  if (left.memory < std::min(all, least)) return std::nullopt;
  const bool holds = left.memory >= all;
  const std::int64_t swept = holds ? 0 : left.head_sweeps * sizes.head_matrix;
  return Residency{.pinned = {},
                   .embedding_in_memory = holds,
                   .head_in_memory = holds,
                   .memory = holds ? all : least,
                   .streamed = swept,
                   .waited = swept};
}

std::int64_t DeviceSplit::cpu_layers() const {
  return std::count(on_cpu.begin(), on_cpu.end(), true);
}

ResidencyRequest beside_processor(const ResidencyRequest& slice, std::int64_t cpu_layers) {
  ResidencyRequest rest = slice;
  rest.windows.clear();
  const std::vector<std::int64_t> counts = cpu_layers_of_windows(slice, cpu_layers);
  for (std::size_t w = 0; w < counts.size(); ++w)
    if (counts[w] < slice.windows[w]) rest.windows.push_back(slice.windows[w] - counts[w]);
  return rest;
}

std::optional<DeviceSplit> plan_split(const ResidencyRequest& slice, std::int64_t device_memory,
                                      std::int64_t cpu_layers) {
  ResidencyRequest rest = beside_processor(slice, cpu_layers);
  const auto device = plan_device(rest, device_memory);
  if (!device) return std::nullopt;
  const std::int64_t held = cpu_layers * slice.sizes.layer();
  rest.memory = slice.memory - held;
  const auto host = plan_host(beside_device(rest, *device));
  if (!host) return std::nullopt;
  DeviceSplit split{.on_cpu = {},
                    .device = *device,
                    .host = *host,
                    .host_memory = host->memory + held,
                    .crossings = 0};
  const bool spreads = device->attention_slots > 0;
  const std::vector<std::int64_t> counts = cpu_layers_of_windows(slice, cpu_layers);
  for (std::size_t w = 0; w < counts.size(); ++w) {
    const std::int64_t window = slice.windows[w], here = counts[w];
    for (std::int64_t i = 0; i < window; ++i) {
      const bool on_cpu =
          spreads ? (i + 1) * here / window > i * here / window : i >= window - here;
      if (on_cpu && (i == 0 || !split.on_cpu.back())) split.crossings += 2;
      split.on_cpu.push_back(on_cpu);
    }
  }
  return split;
}

}  // namespace stagecoach
