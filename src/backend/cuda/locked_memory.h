// Memory of the host that pin() has page-locked, and where kernels find it. Others of the process
// lock memory too (an MPI that knows CUDA does): the driver would call that page-locked as well,
// whoever may write there.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "backend/cuda/cuda_device.h"

namespace stagecoach::cuda {

class LockedMemory {
 public:
  // stream: of the device, which is asked whether it has failed.
  LockedMemory(const Device& device, cudaStream_t stream)
      : stream_(stream), state_(std::make_shared<State>(device)) {}

  // Locks `host` while the result lives, which may be longer than this, and end on any thread.
  // Null: the driver refuses, for which there is one warning.
  std::shared_ptr<void> lock(std::span<std::byte> host);
  // Where kernels find `host`; null: it is not locked, or not as a whole.
  const std::byte* find(std::span<const std::byte> host) const;

 private:
  struct Range {
    const std::byte* end;
    const std::byte* device;
  };
  struct State {
    explicit State(const Device& device_in) : device(device_in) {}
    const Device device;
    std::mutex mutex;
    std::map<const std::byte*, Range> ranges;  // by where they begin
    bool warned = false;
  };
  cudaStream_t stream_;
  std::shared_ptr<State> state_;
};

}  // namespace stagecoach::cuda
