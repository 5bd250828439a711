#include "checkpoint/tensor_set.h"

#include <fmt/format.h>

#include <filesystem>

namespace stagecoach {

std::string file_identity(const File& file) {
  const std::filesystem::path& path = file.path();
  return fmt::format("; {} {} bytes, modified {}", path.filename().string(), file.size(),
                     std::filesystem::last_write_time(path).time_since_epoch().count());
}

}  // namespace stagecoach
