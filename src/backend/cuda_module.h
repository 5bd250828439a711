// The way to GPUs without CUDA's headers: the CUDA backend is a module that is opened at run time,
// so that one build starts on PCs with and without a GPU.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/machine_limits.h"

namespace stagecoach {

struct CudaOptions {
  static constexpr int kByRank = -1;  // GPU rank_here, around again where there are fewer
  int device = 0;
  int rank_here = 0, ranks_here = 1;  // this rank among those of the host
  int threads = 1;                    // that this rank may compute with beside the GPU
  std::string build = {};             // of the binary; make_cuda_backend fills it in
};

// Throws resource_error saying what is missing: the module, a driver, a GPU.
std::unique_ptr<Backend> make_cuda_backend(CudaOptions options);

struct CudaProbeOptions {
  bool quick = false;  // a tenth of the time, less exact
  std::function<bool()> interrupted = [] { return false; };
  std::string build = {};  // of the binary; probe_cuda fills it in
};
struct CudaProbe {
  std::vector<DeviceLimit> devices;
  std::vector<std::string> problems;  // of GPUs that cannot be used, a line each
};
// Measures every GPU of this host, one after the other. Throws resource_error saying what is
// missing, as above, and kInterrupted between two measurements.
CudaProbe probe_cuda(CudaProbeOptions options);

// Whether this build has the module, and this PC an NVIDIA driver: without a driver a CPU is what
// its user expects, and nothing needs to be said.
bool has_cuda_module();
bool has_cuda_driver();
inline constexpr const char* kNoCudaModule =
    "this PC has an NVIDIA driver, and this build of Stagecoach no CUDA module (docs/cuda.md)";

}  // namespace stagecoach

// The module's symbols. The caller owns the results. They throw Error.
extern "C" stagecoach::Backend* stagecoach_open_cuda_backend_v1(
    const stagecoach::CudaOptions& options);
extern "C" stagecoach::CudaProbe* stagecoach_probe_cuda_v1(
    const stagecoach::CudaProbeOptions& options);
