#include "backend/cuda/cuda_device.h"

#include <cuda_runtime.h>

#include <algorithm>

#include "backend/cuda/cuda_error.h"
#include "base/error.h"

namespace stagecoach::cuda {
namespace {

constexpr int kLowestCapability = 75;
constexpr const char* kWithout = "nvidia-smi shows driver and cards; --device cpu does without";

// 13000 → "13.0"
std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

void check_driver() {
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
    throw resource_error("no NVIDIA driver answers on this PC", kWithout);
  check(cudaRuntimeGetVersion(&runtime), "asking for the version of CUDA");
  // A driver serves all minor versions of its major one.
  if (driver / 1000 < runtime / 1000)
    throw resource_error(
        fmt::format("the NVIDIA driver serves CUDA {}, this build needs {} or newer",
                    version_text(driver), version_text(runtime / 1000 * 1000)),
        "install a newer driver, or use --device cpu");
}

}  // namespace

int Device::count() {
  check_driver();
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaErrorNoDevice || (status == cudaSuccess && count == 0))
    throw resource_error("this PC has an NVIDIA driver, and no GPU that CUDA can use", kWithout);
  check(status, "counting devices");
  return count;
}

Device::Device(const CudaOptions& options) {
  const int count = Device::count();
  const bool by_rank = options.device == CudaOptions::kByRank;
  ordinal_ = by_rank ? options.rank_here % count : options.device;
  // A number is every rank's; else ranks go around.
  sharers_ = by_rank ? (options.ranks_here - ordinal_ + count - 1) / count : options.ranks_here;
  sharers_ = std::max(1, sharers_);
  if (ordinal_ < 0 || ordinal_ >= count)
    throw resource_error(fmt::format("--device cuda:{}: this PC has {} GPU{}, numbered from 0",
                                     ordinal_, count, count == 1 ? "" : "s"),
                         "nvidia-smi -L lists them");
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, ordinal_), "asking for the device's properties");
  name_ = properties.name;
  capability_ = 10 * properties.major + properties.minor;
  processors_ = properties.multiProcessorCount;
  if (capability_ < kLowestCapability)
    throw resource_error(
        fmt::format("{} has compute capability {}.{}, this build needs {}.{} or higher", label(),
                    properties.major, properties.minor, kLowestCapability / 10,
                    kLowestCapability % 10),
        "use another GPU (--device cuda:N), or --device cpu");
  use();
}

// Each time: a library that works on the same thread, as an MPI that knows CUDA does, may have
// chosen another one, and that this one is chosen already is soon found out.
void Device::use() const {
  check(cudaSetDevice(ordinal_), "choosing the device");
}

bool Device::try_use() const noexcept {
  return cudaSetDevice(ordinal_) == cudaSuccess;
}

std::string Device::architecture() const {
  return fmt::format("sm_{}x{}", capability_, processors_);
}

std::string Device::label() const {
  return fmt::format("GPU {} ({})", ordinal_, name_);
}

std::int64_t Device::free_bytes() const {
  use();
  std::size_t available = 0, total = 0;
  check(cudaMemGetInfo(&available, &total), "asking for free memory");
  return static_cast<std::int64_t>(available);
}

}  // namespace stagecoach::cuda
