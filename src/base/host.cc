#include "base/host.h"

#include <pwd.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "base/error.h"

namespace stagecoach {

std::string host_name(const std::string& otherwise) {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : otherwise;
}

std::filesystem::path home_folder() {
  if (const char* home = std::getenv("HOME"); home != nullptr && *home != '\0') return home;
  // Of services and what starts without a login. A user without a home has / there, or a path that
  // is not.
  constexpr std::size_t kMostBytes = 16384;
  std::vector<char> buffer(kMostBytes);
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwuid_r(::geteuid(), &entry, buffer.data(), buffer.size(), &found) != 0 ||
      found == nullptr || found->pw_dir == nullptr)
    return {};
  const std::filesystem::path home = found->pw_dir;
  std::error_code ignored;
  return home.has_relative_path() && std::filesystem::is_directory(home, ignored)
             ? home
             : std::filesystem::path();
}

bool in_a_home(std::string_view path) {
  return path == "~" || path.starts_with("~/");
}

std::string with_home(const std::string& path, const std::string& what) {
  if (!in_a_home(path)) return path;
  const std::filesystem::path home = home_folder();
  if (home.empty())
    throw usage_error(fmt::format("{}: '{}': this user has no home folder", what, path),
                      "an absolute path, or set HOME");
  return std::filesystem::path(home.string() + path.substr(1)).lexically_normal();
}

std::filesystem::path user_folder(const char* xdg_variable, const char* below_home) {
  if (const char* folder = std::getenv(xdg_variable);
      folder != nullptr && std::filesystem::path(folder).is_absolute())
    return std::filesystem::path(folder) / "stagecoach";
  const std::filesystem::path home = home_folder();
  return home.empty() ? home : home / below_home / "stagecoach";
}

}  // namespace stagecoach
