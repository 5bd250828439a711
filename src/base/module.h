// Run-time modules: shared objects beside the binary (../lib/stagecoach) that need a package which
// not every PC has. A module that cannot be opened is a clear line, never a binary that does not
// start.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace stagecoach {

class Module {
 public:
  // Opens stagecoach-NAME.so. Throws resource_error saying what is missing.
  static Module open(const std::string& name);

  // Throws an internal error when the module lacks `symbol`.
  template <typename Function>
  Function* function(const char* symbol) const {
    return reinterpret_cast<Function*>(find(symbol));
  }

 private:
  explicit Module(void* handle) : handle_(handle) {}
  void* find(const char* symbol) const;
  void* handle_;  // never closed: Open MPI does not survive being unloaded
};

// For a module's own code, to which both builds are told: both sides of the seam are C++, and
// change together. Throws resource_error where they differ.
void check_same_build(std::string_view module, std::string_view of_module,
                      std::string_view of_binary);

// Folder of the modules: STAGECOACH_MODULES, else ../lib/stagecoach seen from the running binary.
std::filesystem::path module_folder();

}  // namespace stagecoach
