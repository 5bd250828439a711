#include "base/host.h"

#include <unistd.h>

#include <cstdlib>

namespace stagecoach {

std::string host_name(const std::string& otherwise) {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : otherwise;
}

std::filesystem::path user_folder(const char* xdg_variable, const char* below_home) {
  if (const char* folder = std::getenv(xdg_variable);
      folder != nullptr && std::filesystem::path(folder).is_absolute())
    return std::filesystem::path(folder) / "stagecoach";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0')
    return std::filesystem::path(home) / below_home / "stagecoach";
  return {};
}

}  // namespace stagecoach
