#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace stagecoach {

// Unique, removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    // A test that was killed, of the same number, may have left one.
    static std::atomic<int> count{0};
    do
      path_ = std::filesystem::temp_directory_path() /
              fmt::format("stagecoach-test-{}-{}", ::getpid(), count.fetch_add(1));
    while (!std::filesystem::create_directory(path_));
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  void write(std::string_view name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace stagecoach
