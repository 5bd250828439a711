#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "stager/read_queue.h"

namespace stagecoach {
namespace {

// How long a queue that is destroyed waits for reads that are under way.
constexpr std::chrono::seconds kPatience{2};

// Owned by the queue and each of its threads: one that hangs in a read outlives the queue.
struct Shared {
  std::mutex mutex;
  std::condition_variable asked, done, idle;
  std::deque<ReadRequest> requests;
  std::deque<ReadCompletion> completions;
  int busy = 0;
  bool stop = false;
};

ReadCompletion read(const ReadRequest& request) {
  std::size_t done = 0;
  while (done < request.destination.size()) {
    const ssize_t n = ::pread(request.descriptor, request.destination.data() + done,
                              request.destination.size() - done,
                              static_cast<off_t>(request.offset) + static_cast<off_t>(done));
    if (n < 0 && errno == EINTR) continue;
    // What cannot go on where a short read ended, as direct reads at the end of a file, has ended.
    if (n < 0 && done == 0) return {.tag = request.tag, .bytes = 0, .error = errno};
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  if (request.drop_behind)
    ::posix_fadvise(request.descriptor, static_cast<off_t>(request.offset),
                    static_cast<off_t>(request.destination.size()), POSIX_FADV_DONTNEED);
  return {.tag = request.tag, .bytes = static_cast<std::int64_t>(done), .error = 0};
}

void serve(const std::shared_ptr<Shared>& shared) {
  std::unique_lock lock(shared->mutex);
  while (true) {
    shared->asked.wait(lock, [&] { return shared->stop || !shared->requests.empty(); });
    if (shared->stop) return;
    const ReadRequest request = shared->requests.front();
    shared->requests.pop_front();
    ++shared->busy;
    lock.unlock();
    const ReadCompletion completion = read(request);
    lock.lock();
    --shared->busy;
    shared->completions.push_back(completion);
    shared->done.notify_one();
    if (shared->busy == 0) shared->idle.notify_all();
  }
}

class PreadQueue final : public ReadQueue {
 public:
  explicit PreadQueue(int depth) : depth_(depth) {
    try {
      for (int i = 0; i < depth; ++i) std::thread([shared = shared_] { serve(shared); }).detach();
    } catch (const std::exception& error) {
      stop();
      throw resource_error(fmt::format("cannot start {} reading threads: {}", depth, error.what()));
    }
  }
  ~PreadQueue() override { stop(); }

  const char* name() const override { return "pread"; }
  int depth() const override { return depth_; }

  void submit(const ReadRequest& request) override {
    {
      const std::lock_guard lock(shared_->mutex);
      shared_->requests.push_back(request);
    }
    shared_->asked.notify_one();
  }

  std::optional<ReadCompletion> wait(Deadline deadline) override {
    std::unique_lock lock(shared_->mutex);
    if (!shared_->done.wait_until(lock, deadline, [&] { return !shared_->completions.empty(); }))
      return std::nullopt;
    const ReadCompletion completion = shared_->completions.front();
    shared_->completions.pop_front();
    return completion;
  }

 private:
  void stop() {
    std::unique_lock lock(shared_->mutex);
    shared_->stop = true;
    shared_->asked.notify_all();
    shared_->idle.wait_for(lock, kPatience, [&] { return shared_->busy == 0; });
  }

  int depth_;
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace

std::unique_ptr<ReadQueue> make_pread_queue(int depth) {
  return std::make_unique<PreadQueue>(depth);
}

}  // namespace stagecoach
