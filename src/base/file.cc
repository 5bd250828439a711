#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <utility>

#include "base/error.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

Error system_error(const char* action, const fs::path& path, int code) {
  const std::string problem =
      fmt::format("cannot {} {}: {}", action, path.string(), std::strerror(code));
  switch (code) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
      return data_error(problem, "check the path");
    case ENOSPC:
    case EDQUOT:
      return resource_error(problem, "free some space there and run the same command again");
    default:
      return resource_error(problem);
  }
}

// Of a path that we write: whatever the reason, it is the output that fails, never somebody's data.
Error output_error(const char* action, const fs::path& path, int code) {
  const Error cause = system_error(action, path, code);
  return resource_error(cause.what(), cause.hint());
}

void sync_folder(const fs::path& file) {
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw output_error("open", folder, errno);
  const int result = ::fsync(descriptor);
  const int code = errno;
  ::close(descriptor);
  // Some network file systems cannot sync a folder; the rename is as durable there as it gets.
  if (result != 0 && code != EINVAL && code != ENOTSUP) throw system_error("sync", folder, code);
}

}  // namespace

File::File(fs::path path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      written_(other.written_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(written_, other.written_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open_read(const fs::path& path) {
  // O_NONBLOCK: opening a FIFO that somebody left in a checkpoint must not hang.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) throw system_error("open", path, errno);
  File file(path, descriptor);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0) throw system_error("stat", path, errno);
  if (!S_ISREG(status.st_mode))
    throw data_error(fmt::format("{} is not a regular file", path.string()));
  return file;
}

std::optional<File> File::open_direct(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (descriptor < 0 && (errno == EINVAL || errno == ENOTSUP || errno == EOPNOTSUPP))
    return std::nullopt;
  if (descriptor < 0) throw system_error("open", path, errno);
  return File(path, descriptor);
}

File File::create(const fs::path& path) {
  // A new file, never one that a symbolic link points to: in a shared folder that could be
  // anybody's.
  struct stat there {};
  if (::lstat(path.c_str(), &there) == 0) {
    if (!S_ISREG(there.st_mode) && !S_ISLNK(there.st_mode))
      throw resource_error(
          fmt::format("cannot create {}: something that is not a file is there", path.string()),
          "another name, or move away what is there");
    if (::unlink(path.c_str()) != 0) throw output_error("replace", path, errno);
  }
  const int descriptor =
      ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (descriptor < 0) throw output_error("create", path, errno);
  return {path, descriptor};
}

File File::open_update(const fs::path& path) {
  const int descriptor =
      ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);
  if (descriptor < 0) throw output_error("open", path, errno);
  File file(path, descriptor);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode))
    throw resource_error(
        fmt::format("cannot write {}: something that is not a file is there", path.string()),
        "another name, or move away what is there");
  return file;
}

std::int64_t File::size() const {
  struct stat status {};
  if (::fstat(descriptor_, &status) != 0) throw system_error("stat", path_, errno);
  return status.st_size;
}

void File::read_at(std::int64_t offset, std::span<std::byte> destination) const {
  const std::size_t wanted = destination.size();
  std::size_t done = 0;
  while (done < wanted) {
    const ssize_t n = ::pread(descriptor_, destination.data() + done, wanted - done,
                              static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error("read", path_, errno);
    if (n == 0)
      throw data_error(fmt::format("{} is truncated: expected {} bytes at offset {}, found {}",
                                   path_.string(), wanted, offset, done));
    done += static_cast<std::size_t>(n);
  }
}

void File::append(std::span<const std::byte> source) {
  write_at(written_, source);
  written_ += static_cast<std::int64_t>(source.size());
}

void File::write_at(std::int64_t offset, std::span<const std::byte> source) {
  std::size_t done = 0;
  while (done < source.size()) {
    const ssize_t n = ::pwrite(descriptor_, source.data() + done, source.size() - done,
                               static_cast<off_t>(offset) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw system_error("write", path_, errno);
    done += static_cast<std::size_t>(n);
  }
}

void File::close_synced() {
  if (::fsync(descriptor_) != 0) throw system_error("sync", path_, errno);
  if (::close(std::exchange(descriptor_, -1)) != 0) throw system_error("close", path_, errno);
}

std::string read_text_file(const fs::path& path, std::int64_t max_bytes) {
  const File file = File::open_read(path);
  const std::int64_t size = file.size();
  if (size > max_bytes)
    throw data_error(
        fmt::format("{} has {} bytes, expected at most {}", path.string(), size, max_bytes));
  std::string text(static_cast<std::size_t>(size), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  fs::path temporary = path;
  temporary += ".tmp";
  try {
    File file = File::create(temporary);
    file.append(as_bytes(content));
    file.close_synced();
    rename_synced(temporary, path);
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
}

void write_secret(const fs::path& path, std::string_view content) {
  const int descriptor =
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
  if (descriptor < 0) throw output_error("create", path, errno);
  const ssize_t written = ::write(descriptor, content.data(), content.size());
  const int code = errno;
  ::close(descriptor);
  if (written != static_cast<ssize_t>(content.size())) {
    ::unlink(path.c_str());
    throw output_error("write", path, written < 0 ? code : ENOSPC);
  }
}

void write_output(const fs::path& path, std::string_view content) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  if (!fs::exists(status) || fs::is_regular_file(status)) {
    const fs::path target = fs::canonical(path, ignored);
    return write_file_atomically(target.empty() ? path : target, content);
  }
  const int descriptor = ::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
  if (descriptor < 0) throw output_error("open", path, errno);
  int code = 0;
  while (!content.empty() && code == 0) {
    const ssize_t n = ::write(descriptor, content.data(), content.size());
    if (n >= 0) content.remove_prefix(static_cast<std::size_t>(n));
    if (n < 0 && errno != EINTR) code = errno;
  }
  ::close(descriptor);
  if (code != 0) throw output_error("write", path, code);
}

std::string unique_name(std::string_view stem) {
  // Several hosts may share the folder, and containers their process ids.
  std::random_device random;
  return fmt::format("{}-{}-{:08x}{:08x}", stem, ::getpid(), random(), random());
}

fs::path nearest_existing(const fs::path& path) {
  std::error_code error;
  fs::path place = fs::absolute(path, error);
  if (error) return {};
  struct stat status {};
  while (::stat(place.c_str(), &status) != 0 && place != place.parent_path())
    place = place.parent_path();
  return place;
}

void check_writable(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw resource_error(fmt::format("cannot create {}: {}", folder.string(), error.message()),
                         "name a folder that you may write");
  const fs::path probe = folder / unique_name(".stagecoach");
  File::create(probe);
  fs::remove(probe, error);
}

void rename_synced(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw output_error("rename to", to, errno);
  sync_folder(to);
}

}  // namespace stagecoach
