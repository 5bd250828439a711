#include "checkpoint/tensor_set.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

namespace stagecoach {

std::string file_identity(const File& file) {
  const std::filesystem::path& path = file.path();
  return fmt::format("; {} {} bytes, modified {}", path.filename().string(), file.size(),
                     std::filesystem::last_write_time(path).time_since_epoch().count());
}

bool same_content(const StoredTensor& a, const StoredTensor& b) {
  constexpr std::int64_t kChunkBytes = 1 << 20;
  if (a.type != b.type || a.shape != b.shape || a.strides != b.strides || a.bytes != b.bytes)
    return false;
  std::vector<std::byte> left, right;
  for (std::int64_t done = 0; done < a.bytes; done += kChunkBytes) {
    left.resize(static_cast<std::size_t>(std::min(kChunkBytes, a.bytes - done)));
    right.resize(left.size());
    a.file->read_at(a.offset + done, left);
    b.file->read_at(b.offset + done, right);
    if (left != right) return false;
  }
  return true;
}

}  // namespace stagecoach
