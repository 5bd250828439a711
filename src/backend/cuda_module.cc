#include "backend/cuda_module.h"

#include <dlfcn.h>

#include "base/module.h"
#include "base/version.h"

namespace stagecoach {

std::unique_ptr<Backend> make_cuda_backend(CudaOptions options) {
  options.build = STAGECOACH_BUILD;
  const auto module = Module::open("cuda");
  auto* open =
      module.function<decltype(stagecoach_open_cuda_backend_v1)>("stagecoach_open_cuda_backend_v1");
  return std::unique_ptr<Backend>(open(options));
}

CudaProbe probe_cuda(CudaProbeOptions options) {
  options.build = STAGECOACH_BUILD;
  const auto module = Module::open("cuda");
  auto* probe = module.function<decltype(stagecoach_probe_cuda_v1)>("stagecoach_probe_cuda_v1");
  return *std::unique_ptr<CudaProbe>(probe(options));
}

bool has_cuda_module() {
  std::error_code ignored;
  return std::filesystem::exists(module_folder() / "stagecoach-cuda.so", ignored);
}

bool has_cuda_driver() {
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver != nullptr) ::dlclose(driver);
  return driver != nullptr;
}

}  // namespace stagecoach
