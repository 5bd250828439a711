#include "plan/device_residency.h"

#include <algorithm>
#include <numeric>

namespace stagecoach {
namespace {

ResidencyRequest device_request(const ResidencyRequest& slice, std::int64_t memory) {
  ResidencyRequest request = slice;
  request.sizes = sizes_on_device(slice.sizes);
  request.memory = memory;
  return request;
}

}  // namespace

WeightSizes sizes_on_device(WeightSizes sizes) {
  if (sizes.embedding_in_memory > 0)
    sizes.embedding_in_memory = sizes.embedding_on_disk =
        std::min(sizes.embedding_on_disk, sizes.embedding_in_memory) + sizes.row_buffer;
  sizes.shared = 0;
  return sizes;
}

std::optional<Residency> plan_device(const ResidencyRequest& slice, std::int64_t memory) {
  return plan_residency(device_request(slice, memory));
}

std::int64_t smallest_device_memory(const ResidencyRequest& slice) {
  return smallest_memory(device_request(slice, 0));
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

}  // namespace stagecoach
