// What MPI may do with the memory of this rank's device.
#pragma once

#include <memory>
#include <mutex>
#include <optional>

#include "transport/transport.h"

namespace stagecoach {

// What STAGECOACH_CUDA_AWARE_MPI says (on, off), if anything. Throws usage_error on another value.
std::optional<bool> wanted_device_access();
// Whether this MPI, which runs, says that it reads and writes a device's memory.
bool mpi_knows_devices();

// What the rank has lent; thread-safe.
class DeviceAccess {
 public:
  void lend(DeviceMemory memory);
  // As DeviceMemory, and nothing where none is lent. For the thread that talks MPI.
  void use_device();
  std::shared_ptr<std::byte> take(std::size_t bytes);

 private:
  std::mutex mutex_;  // held while a function runs, so that lend() returns after it
  DeviceMemory memory_;
};

}  // namespace stagecoach
