// Run-time modules: shared objects beside the binary (../lib/stagecoach) that need a package which
// not every PC has. A module that cannot be opened is a clear line, never a binary that does not
// start.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

namespace stagecoach {

class Module {
 public:
  // Opens stagecoach-NAME.so. Throws resource_error saying what is missing, or what is wrong with
  // the file.
  static Module open(const std::string& name);

  // Throws resource_error when the module lacks `symbol`: it is something else.
  template <typename Function>
  Function* function(const char* symbol) const {
    return reinterpret_cast<Function*>(find(symbol));
  }

 private:
  Module(void* handle, std::string name, std::filesystem::path path)
      : handle_(handle), name_(std::move(name)), path_(std::move(path)) {}
  void* find(const char* symbol) const;
  void* handle_;  // never closed: Open MPI does not survive being unloaded
  std::string name_;
  std::filesystem::path path_;
};

// For a module's own code, to which both builds are told: both sides of the seam are C++, and
// change together. Throws resource_error where they differ.
void check_same_build(std::string_view module, std::string_view of_module,
                      std::string_view of_binary);

// Folder of the modules: STAGECOACH_MODULES, else ../lib/stagecoach seen from the running binary.
std::filesystem::path module_folder();

}  // namespace stagecoach
