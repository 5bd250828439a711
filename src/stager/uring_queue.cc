#include "stager/read_queue.h"

#ifdef STAGECOACH_HAVE_URING

#include <liburing.h>

#include <fcntl.h>

#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "base/error.h"

namespace stagecoach {
namespace {

class UringQueue final : public ReadQueue {
 public:
  explicit UringQueue(int depth) : depth_(depth) {
    error_ = -io_uring_queue_init(static_cast<unsigned>(depth), &ring_, 0);
    if (error_ == 0 && !reads()) {
      io_uring_queue_exit(&ring_);
      error_ = ENOSYS;
    }
  }
  ~UringQueue() override {
    // Reads still under way hold the pages they write to, so that those may be unmapped.
    if (error_ == 0) io_uring_queue_exit(&ring_);
  }

  bool works() const { return error_ == 0; }
  const char* name() const override { return "io_uring"; }
  int depth() const override { return depth_; }

  void submit(const ReadRequest& request) override {
    begin(under_way_.emplace(request.tag, Read{request, 0}).first->second);
  }

  std::optional<ReadCompletion> wait(Deadline deadline) override {
    while (const std::optional<ReadCompletion> found = next(deadline)) {
      const auto read = under_way_.find(found->tag);
      STAGECOACH_CHECK(read != under_way_.end());
      if (!ended(read->second, *found)) {
        begin(read->second);  // a short read says nothing yet
        continue;
      }
      const auto [request, done] = read->second;
      under_way_.erase(read);
      if (request.drop_behind)
        ::posix_fadvise(request.descriptor, static_cast<off_t>(request.offset),
                        static_cast<off_t>(request.destination.size()), POSIX_FADV_DONTNEED);
      // What cannot go on where a short read ended, as direct reads at the end of a file, has
      // ended.
      return ReadCompletion{
          .tag = request.tag, .bytes = done, .error = done > 0 ? 0 : found->error};
    }
    return std::nullopt;
  }

 private:
  struct Read {
    ReadRequest request;
    std::int64_t done = 0;
  };

  // Kernels before 5.6 have rings, and no such reads.
  bool reads() {
    io_uring_probe* const probe = io_uring_get_probe_ring(&ring_);
    if (probe == nullptr) return false;
    const bool supported = io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
    io_uring_free_probe(probe);
    return supported;
  }

  static bool ended(Read& read, const ReadCompletion& completion) {
    read.done += completion.bytes;
    return completion.error != 0 || completion.bytes == 0 ||
           read.done == static_cast<std::int64_t>(read.request.destination.size());
  }

  void begin(const Read& read) {
    const ReadRequest& request = read.request;
    const auto rest = request.destination.subspan(static_cast<std::size_t>(read.done));
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    STAGECOACH_CHECK(entry != nullptr);
    io_uring_prep_read(entry, request.descriptor, rest.data(), static_cast<unsigned>(rest.size()),
                       static_cast<std::uint64_t>(request.offset + read.done));
    io_uring_sqe_set_data64(entry, request.tag);
    int result = 0;
    do {
      result = io_uring_submit(&ring_);
    } while (result == -EINTR || result == -EAGAIN);
    if (result < 0)
      throw resource_error(fmt::format("io_uring refuses a read: {}", std::strerror(-result)),
                           "STAGECOACH_IO=pread reads without io_uring");
  }

  std::optional<ReadCompletion> next(Deadline deadline) {
    io_uring_cqe* entry = nullptr;
    while (io_uring_peek_cqe(&ring_, &entry) != 0) {
      const auto left =
          std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
      if (left <= 0) return std::nullopt;
      __kernel_timespec timeout{.tv_sec = left / 1'000'000'000, .tv_nsec = left % 1'000'000'000};
      const int result = io_uring_wait_cqe_timeout(&ring_, &entry, &timeout);
      if (result < 0 && result != -ETIME && result != -EINTR)
        throw resource_error(fmt::format("io_uring fails: {}", std::strerror(-result)),
                             "STAGECOACH_IO=pread reads without io_uring");
    }
    const ReadCompletion completion{.tag = io_uring_cqe_get_data64(entry),
                                    .bytes = entry->res < 0 ? 0 : entry->res,
                                    .error = entry->res < 0 ? -entry->res : 0};
    io_uring_cqe_seen(&ring_, entry);
    return completion;
  }

  int depth_;
  int error_ = 0;
  io_uring ring_{};
  std::unordered_map<std::uint64_t, Read> under_way_;  // by tag
};

}  // namespace

std::unique_ptr<ReadQueue> make_uring_queue(int depth) {
  auto queue = std::make_unique<UringQueue>(depth);
  if (!queue->works()) return nullptr;
  return queue;
}

}  // namespace stagecoach

#else

namespace stagecoach {

std::unique_ptr<ReadQueue> make_uring_queue(int) {
  return nullptr;
}

}  // namespace stagecoach

#endif
