#include "backend/cuda_module.h"

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

}  // namespace stagecoach
