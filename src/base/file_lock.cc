#include "base/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace stagecoach {

FileLock::FileLock(const std::filesystem::path& path, int flags, const std::string& problem)
    : descriptor_(::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0644)) {
  if (descriptor_ < 0)
    throw resource_error(fmt::format("cannot open {}: {}", path.string(), std::strerror(errno)));
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor_);
    throw usage_error(problem, "wait for it, or choose another folder");
  }
}

FileLock FileLock::of_folder(const std::filesystem::path& folder, const std::string& problem) {
  return {folder, O_RDONLY | O_DIRECTORY, problem};
}

FileLock FileLock::of_file(const std::filesystem::path& file, const std::string& problem) {
  return {file, O_RDWR | O_CREAT, problem};
}

FileLock::FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock::~FileLock() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace stagecoach
