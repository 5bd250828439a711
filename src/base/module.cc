#include "base/module.h"

#include <dlfcn.h>

#include <cstdlib>

#include "base/error.h"

namespace stagecoach {

void check_same_build(std::string_view module, std::string_view of_module,
                      std::string_view of_binary) {
  if (of_module != of_binary)
    throw resource_error(fmt::format("the {} module is of build {}, this binary of {}", module,
                                     of_module, of_binary),
                         "copy lib/stagecoach from where the binary was built, beside its bin");
}

std::filesystem::path module_folder() {
  if (const char* folder = std::getenv("STAGECOACH_MODULES")) return folder;
  std::error_code error;
  const auto binary = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error)
    throw resource_error("cannot find the running binary: " + error.message(),
                         "set STAGECOACH_MODULES");
  return binary.parent_path().parent_path() / "lib" / "stagecoach";
}

Module Module::open(const std::string& name) {
  const auto path = module_folder() / ("stagecoach-" + name + ".so");
  // Global, because Open MPI opens plugins of its own that look for libmpi's symbols.
  void* handle = ::dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    const std::string problem =
        fmt::format("the {} module cannot be opened: {}", name, ::dlerror());
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored))
      throw resource_error(
          problem, name == "mpi"
                       ? "copy lib/stagecoach from where the binary was built, beside its bin; a "
                         "build makes this module where Open MPI is (apt-get install "
                         "libopenmpi-dev openmpi-bin)"
                       : "copy lib/stagecoach from where the binary was built, beside its bin");
    throw resource_error(
        problem, name == "mpi"
                     ? "install Open MPI (apt-get install openmpi-bin), or run without mpirun"
                     : "");
  }
  return Module(handle);
}

void* Module::find(const char* symbol) const {
  void* address = ::dlsym(handle_, symbol);
  STAGECOACH_CHECK(address != nullptr);
  return address;
}

}  // namespace stagecoach
