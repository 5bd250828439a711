#include "app/disk_probe.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <random>
#include <span>
#include <utility>

#include "base/aligned_buffer.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "stager/read_queue.h"
#include "store/manifest.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr int kQueueDepth = 16;
constexpr std::chrono::seconds kStall{60};
// Far beyond the caches: weights, too, go where nothing has just been. A virtual disk copies, and
// into a small buffer it copies faster than any use could.
constexpr std::int64_t kMemory = std::int64_t{256} << 20;
constexpr std::int64_t kBlock = std::int64_t{1} << 20;
constexpr std::int64_t kSmallestFile = std::int64_t{16} << 20;
// Shorter data may be in the disk's own memory when it is read again.
constexpr std::int64_t kTrusted = std::int64_t{256} << 20;

// A descriptor with O_DIRECT. The last block may be shorter: the system ends it where the file
// does.
class DirectFile {
 public:
  DirectFile(int descriptor, std::int64_t bytes) : descriptor_(descriptor), bytes_(bytes) {}
  DirectFile(DirectFile&& other) noexcept
      : descriptor_(std::exchange(other.descriptor_, -1)), bytes_(other.bytes_) {}
  DirectFile& operator=(DirectFile&&) = delete;
  ~DirectFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  int descriptor() const { return descriptor_; }
  std::int64_t bytes() const { return bytes_; }
  std::int64_t blocks() const { return (bytes_ + kBlock - 1) / kBlock; }

 private:
  int descriptor_;
  std::int64_t bytes_;
};

Error disk_error(const char* action, const fs::path& path, int code) {
  return resource_error(fmt::format("cannot {} {}: {}", action, path.string(), std::strerror(code)),
                        "stagecoach probe --store DIR measures another disk");
}

void check_interrupted(const DiskProbeOptions& options) {
  if (options.interrupted && options.interrupted())
    throw Error(ErrorKind::kInterrupted, "interrupted");
}

// All blocks of `files` in order, over and over, as staging reads: what it can hope for.
class Reader {
 public:
  Reader(const std::vector<DirectFile>& files, const DiskProbeOptions& options)
      : files_(files),
        options_(options),
        memory_(std::max(kQueueDepth * kBlock, std::min(kMemory, options.read_bytes))),
        queue_(make_read_queue(kQueueDepth)) {
    // Of small pages, a block would be cut into several requests: less than half the rate on some
    // disks.
    memory_.advise_huge_pages();
    for (std::int64_t at = 0; at + kBlock <= static_cast<std::int64_t>(memory_.size());
         at += kBlock)
      free_.push_back(static_cast<std::size_t>(at));
  }

  double bytes_per_second() {
    const std::int64_t begin_ns = now_ns();
    const Deadline deadline =
        Clock::now() +
        std::chrono::nanoseconds(static_cast<std::int64_t>(options_.read_seconds * 1e9));
    std::int64_t asked = 0, done = 0;
    int under_way = 0;
    for (; under_way < kQueueDepth; ++under_way) asked += submit();
    while (under_way > 0) {
      check_interrupted(options_);
      const auto completion = queue_->wait(Clock::now() + kStall);
      if (!completion) throw disk_error("read", "the files being probed", ETIMEDOUT);
      if (completion->error != 0)
        throw disk_error("read", "the files being probed", completion->error);
      done += completion->bytes;
      --under_way;
      free_.push_back(static_cast<std::size_t>(completion->tag));
      if (asked >= options_.read_bytes || Clock::now() >= deadline) continue;
      asked += submit();
      ++under_way;
    }
    if (done == 0) throw data_error("the files being probed became empty meanwhile");
    return static_cast<double>(done) / seconds_since(begin_ns);
  }

 private:
  // Reads the next block into the memory that has rested longest.
  std::int64_t submit() {
    const std::size_t place = free_.front();
    free_.pop_front();
    const DirectFile& file = files_[file_];
    queue_->submit({.descriptor = file.descriptor(),
                    .offset = block_ * kBlock,
                    .destination = memory_.span().subspan(place, kBlock),
                    .tag = place});
    if (++block_ == file.blocks()) {
      block_ = 0;
      file_ = (file_ + 1) % files_.size();
    }
    return kBlock;
  }

  const std::vector<DirectFile>& files_;
  const DiskProbeOptions& options_;
  AlignedBuffer memory_;
  std::deque<std::size_t> free_;  // blocks of it, by offset
  std::unique_ptr<ReadQueue> queue_;
  std::size_t file_ = 0;
  std::int64_t block_ = 0;
};

// EINVAL: the file system knows no direct I/O.
bool refuses_direct(int code) {
  return code == EINVAL || code == ENOTSUP;
}

std::nullopt_t refused(const fs::path& place) {
  spdlog::warn(
      "the file system of {} refuses direct reads, so that its rate cannot be told from the page "
      "cache's: not measured",
      place.string());
  return std::nullopt;
}

// Newer systems' tmpfs takes direct reads, of memory.
bool lies_in_memory(const fs::path& place) {
  struct statfs system {};
  return ::statfs(place.c_str(), &system) == 0 &&
         (system.f_type == TMPFS_MAGIC || system.f_type == RAMFS_MAGIC);
}

// The slabs of a store that are there: a host may hold a slice. Null: direct reads are refused.
std::optional<std::vector<DirectFile>> open_slabs(const fs::path& store, const Manifest& manifest) {
  std::vector<DirectFile> files;
  for (const SlabEntry& slab : manifest.slabs) {
    const fs::path path = store / slab.file;
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0 && errno == ENOENT) continue;
    if (descriptor < 0 && refuses_direct(errno)) return std::nullopt;
    if (descriptor < 0) throw disk_error("open", path, errno);
    struct stat status {};
    const bool known = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
    DirectFile file(descriptor, known ? status.st_size : 0);
    if (file.bytes() > 0) files.push_back(std::move(file));
  }
  return files;
}

std::int64_t temporary_size(const fs::path& folder, const DiskProbeOptions& options) {
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error) throw disk_error("find the free space of", folder, error.value());
  // Half of what is free stays free: others write too.
  const auto available = static_cast<std::int64_t>(
      std::min<std::uintmax_t>(space.available / 2, std::uintmax_t{1} << 40));
  if (available < kSmallestFile)
    throw resource_error(
        fmt::format("{} has {} free, a file to measure its disk takes twice {} at least",
                    folder.string(), format_bytes(2 * available), format_bytes(kSmallestFile)),
        "stagecoach probe --store DIR measures another disk");
  return std::min(options.temporary_bytes, available) / kBlock * kBlock;
}

// Writes up to `bytes`; how many it was when the time was over.
std::int64_t fill(int descriptor, const fs::path& path, std::int64_t bytes,
                  const DiskProbeOptions& options) {
  // Random: some disks and file systems compress, and zeros would be no bytes at all.
  AlignedBuffer buffer(kBlock);
  std::mt19937_64 generator(1);
  const std::span<std::uint64_t> words(reinterpret_cast<std::uint64_t*>(buffer.data()),
                                       buffer.size() / sizeof(std::uint64_t));
  for (std::uint64_t& word : words) word = generator();
  const std::int64_t begin_ns = now_ns();
  std::int64_t done = 0;
  while (done < bytes &&
         (done < kSmallestFile || seconds_since(begin_ns) < options.write_seconds)) {
    check_interrupted(options);
    words[0] = generator();  // no two blocks alike, where equal ones are kept once
    const ssize_t n = ::pwrite(descriptor, buffer.data(), buffer.size(), done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw disk_error("write", path, errno);
    if (n < kBlock) break;  // the disk is full
    done += n;
  }
  if (::fsync(descriptor) != 0) throw disk_error("sync", path, errno);
  return done;
}

// A file without a name: it is gone when it is closed, whatever ends this process.
std::optional<DirectFile> make_temporary(const fs::path& folder, const DiskProbeOptions& options) {
  const std::int64_t bytes = temporary_size(folder, options);
  const fs::path path = folder / fmt::format(".stagecoach-probe-{}", ::getpid());
  const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_DIRECT;
  const int descriptor = ::open(path.c_str(), flags, 0600);
  const int code = errno;
  // The open may fail after the file was made.
  if (descriptor >= 0 || refuses_direct(code)) ::unlink(path.c_str());
  if (descriptor < 0 && refuses_direct(code)) return std::nullopt;
  if (descriptor < 0) throw disk_error("create", path, code);
  const DirectFile empty(descriptor, 0);  // closes it if writing fails
  const std::int64_t written = fill(descriptor, path, bytes, options);
  return DirectFile(::fcntl(descriptor, F_DUPFD_CLOEXEC, 0), written);
}

}  // namespace

std::optional<DiskProbe> probe_disk(const fs::path& place, const DiskProbeOptions& options) {
  std::error_code trouble;
  if (!fs::is_directory(place, trouble))
    throw data_error(fmt::format("{} is not a folder{}", place.string(),
                                 trouble ? ": " + trouble.message() : ""),
                     "give --store a store, or a folder on the disk to measure");
  if (lies_in_memory(place)) {
    spdlog::warn("{} lies in memory, not on a disk: not measured", place.string());
    return std::nullopt;
  }
  std::optional<std::vector<DirectFile>> files(std::in_place);
  if (fs::exists(place / kManifestFile, trouble)) files = open_slabs(place, read_manifest(place));
  if (!files) return refused(place);
  const bool slabs = !files->empty();
  if (!slabs) {
    std::optional<DirectFile> file = make_temporary(place, options);
    if (!file) return refused(place);
    files->push_back(std::move(*file));
  }
  std::int64_t bytes = 0;
  for (const DirectFile& file : *files) bytes += file.bytes();
  if (slabs && bytes < std::min(kTrusted, options.read_bytes))
    spdlog::info("{} has slabs of {}: read again and again, they may come from the disk's memory",
                 place.string(), format_bytes(bytes));
  const double rate = Reader(*files, options).bytes_per_second();
  return DiskProbe{fs::canonical(place).string(), rate};
}

}  // namespace stagecoach
