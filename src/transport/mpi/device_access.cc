#include "transport/mpi/device_access.h"

#include <cstdlib>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "transport/mpi/mpi_api.h"

// The macro of the same header speaks of the library that we were built with; the function, of the
// one that runs. An Open MPI without this extension lacks it.
#ifdef OMPI_HAVE_MPI_EXT_CUDA
#pragma weak MPIX_Query_cuda_support
#endif

namespace stagecoach {

std::optional<bool> wanted_device_access() {
  const char* const variable = std::getenv("STAGECOACH_CUDA_AWARE_MPI");
  const std::string_view value = variable != nullptr ? variable : "";
  if (!value.empty() && value != "on" && value != "off")
    throw usage_error(fmt::format("STAGECOACH_CUDA_AWARE_MPI is '{}', not on or off", value),
                      "leave it out, and MPI is asked");
  if (value.empty()) return std::nullopt;
  return value == "on";
}

bool mpi_knows_devices() {
#ifdef OMPI_HAVE_MPI_EXT_CUDA
  return MPIX_Query_cuda_support != nullptr && MPIX_Query_cuda_support() == 1;
#else
  return false;
#endif
}

void DeviceAccess::lend(DeviceMemory memory) {
  const std::lock_guard lock(mutex_);
  memory_ = std::move(memory);
}

void DeviceAccess::use_device() {
  const std::lock_guard lock(mutex_);
  if (memory_.use_device) memory_.use_device();
}

std::shared_ptr<std::byte> DeviceAccess::take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return memory_.take ? memory_.take(bytes) : nullptr;
}

}  // namespace stagecoach
