#include "stager/direct_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/aligned_buffer.h"
#include "base/log.h"

namespace stagecoach {
namespace {

bool wants_page_cache() {
  const char* io = std::getenv("STAGECOACH_IO");
  return io != nullptr && std::string_view(io) == "buffered";
}

// Some file systems open a file for direct reads and refuse the reads.
bool reads_directly(const File& file) {
  AlignedBuffer block(kDirectAlignment);
  return ::pread(file.descriptor(), block.data(), block.size(), 0) >= 0 || errno != EINVAL;
}

}  // namespace

DirectFile DirectFiles::open(const SlabEntry& slab) {
  if (const auto found = opened_.find(slab.file); found != opened_.end()) return found->second;
  const File& buffered = store_.open_slab(slab);
  DirectFile result{.descriptor = buffered.descriptor(), .direct = false};
  if (!wants_page_cache()) {
    if (auto file = File::open_direct(buffered.path()); file && reads_directly(*file)) {
      result = {.descriptor = file->descriptor(), .direct = true};
      files_.emplace(slab.file, *std::move(file));
    } else if (!std::exchange(warned_, true)) {
      spdlog::warn(
          "{}: the file system refuses direct reads: reading through the page cache, and dropping "
          "what was read",
          store_.root().string());
    }
  }
  return opened_.emplace(slab.file, result).first->second;
}

}  // namespace stagecoach
