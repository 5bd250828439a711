#include "stager/read_queue.h"

#ifdef STAGECOACH_HAVE_URING

#include <liburing.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace stagecoach {
namespace {

class UringQueue final : public ReadQueue {
 public:
  explicit UringQueue(int depth) : depth_(depth) {
    error_ = -io_uring_queue_init(static_cast<unsigned>(depth), &ring_, 0);
  }
  ~UringQueue() override {
    // Reads still under way hold the pages they write to, so that those may be unmapped.
    if (error_ == 0) io_uring_queue_exit(&ring_);
  }

  bool works() const { return error_ == 0; }
  const char* name() const override { return "io_uring"; }
  int depth() const override { return depth_; }

  void submit(const ReadRequest& request) override {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
    STAGECOACH_CHECK(entry != nullptr);
    io_uring_prep_read(entry, request.descriptor, request.destination.data(),
                       static_cast<unsigned>(request.destination.size()),
                       static_cast<std::uint64_t>(request.offset));
    io_uring_sqe_set_data64(entry, request.tag);
    int result = 0;
    do {
      result = io_uring_submit(&ring_);
    } while (result == -EINTR || result == -EAGAIN);
    if (result < 0)
      throw resource_error(fmt::format("io_uring refuses a read: {}", std::strerror(-result)),
                           "STAGECOACH_IO=pread reads without io_uring");
  }

  std::optional<ReadCompletion> wait(Deadline deadline) override {
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

 private:
  int depth_;
  int error_ = 0;
  io_uring ring_{};
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
