#include "backend/cuda/locked_memory.h"

#include <utility>

#include "backend/cuda/cuda_error.h"
#include "base/log.h"

namespace stagecoach::cuda {

std::shared_ptr<void> LockedMemory::lock(std::span<std::byte> host) {
  if (host.empty()) return nullptr;
  std::byte* const begin = host.data();
  void* device = nullptr;
  cudaError_t status = cudaHostRegister(begin, host.size(), cudaHostRegisterMapped);
  if (status == cudaSuccess) {
    status = cudaHostGetDevicePointer(&device, begin, 0);
    if (status != cudaSuccess) cudaHostUnregister(begin);
  }
  if (status != cudaSuccess) check_device(stream_);
  const std::lock_guard guard(state_->mutex);
  if (status != cudaSuccess) {
    if (!std::exchange(state_->warned, true))
      spdlog::warn("host memory cannot be page-locked ({}): copies to the GPU will be slower",
                   cudaGetErrorString(status));
    return nullptr;
  }
  state_->ranges[begin] = {begin + host.size(), static_cast<const std::byte*>(device)};
  return {begin, [state = state_](std::byte* data) {
            {
              const std::lock_guard ended(state->mutex);
              state->ranges.erase(data);
            }
            state->device.try_use();  // or the thread would begin to use another one
            cudaHostUnregister(data);
          }};
}

const std::byte* LockedMemory::find(std::span<const std::byte> host) const {
  const std::lock_guard guard(state_->mutex);
  auto after = state_->ranges.upper_bound(host.data());
  if (after == state_->ranges.begin()) return nullptr;
  const auto& [begin, range] = *--after;
  if (host.data() + host.size() > range.end) return nullptr;
  return range.device + (host.data() - begin);
}

}  // namespace stagecoach::cuda
