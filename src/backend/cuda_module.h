// The way to GPUs without CUDA's headers: the CUDA backend is a module that is opened at run time,
// so that one build starts on PCs with and without a GPU.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

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

}  // namespace stagecoach

// The module's one symbol. The caller owns the result. Throws Error.
extern "C" stagecoach::Backend* stagecoach_open_cuda_backend_v1(
    const stagecoach::CudaOptions& options);
