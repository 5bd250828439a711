#include "work.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "fibers.h"
#include "runtime.h"

namespace cuda_sim {
namespace {

constexpr std::uint32_t kMaxShuffledBlocks = 1u << 24;

// Runs code that may fault; whether it did not.
bool run_guarded(Runtime& runtime, int device, const std::string& what,
                 const std::function<void()>& body) {
  BlockJob job;
  job.body = &body;
  const BlockFailure failure = run_block(job, runtime.random);
  if (failure.error == cudaSuccess) return true;
  runtime.fail(device, failure.error, fmt::format("{}: {}", what, failure.what));
  return false;
}

class KernelWork final : public Work {
 public:
  explicit KernelWork(std::shared_ptr<const Grid> grid) : grid_(std::move(grid)) {}

  Progress step(Runtime& runtime, int device) override {
    if (order_.empty() && !start(runtime, device)) return Progress::kDone;
    const std::size_t left = order_.size() - next_;
    // Other streams' ops may come between blocks.
    std::size_t count = left;
    if (left > 1 && runtime.random.chance(1, 4))
      count = 1 + runtime.random.below(static_cast<std::uint32_t>(left));
    for (std::size_t n = 0; n < count; ++n)
      if (!run(runtime, device, order_[next_++])) return Progress::kDone;
    if (next_ < order_.size()) return Progress::kMore;
    ++runtime.stats.launches[grid_->name];
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override { return std::make_unique<KernelWork>(grid_); }

 private:
  bool start(Runtime& runtime, int device) {
    for (std::size_t n = 0; n < grid_->pointers.size(); ++n) {
      const void* const pointer = grid_->pointers[n];
      const DeviceMemory& own = runtime.device(device).memory;
      if (pointer == nullptr || own.find(pointer) != nullptr || runtime.pinned.contains(pointer, 0))
        continue;
      const DeviceMemory* const memory = runtime.memory_of(pointer);
      runtime.fail(device, cudaErrorIllegalAddress,
                   fmt::format("kernel {}: pointer {} of its arguments, {}, is no address of the "
                               "device's: {}",
                               grid_->name, n + 1, pointer,
                               memory != nullptr ? memory->describe(pointer)
                                                 : "pageable host memory, or garbage"));
      return false;
    }
    const dim3 size = grid_->grid;
    const std::uint64_t blocks = std::uint64_t{size.x} * size.y * size.z;
    if (blocks > 0xffffffffu) {
      runtime.fail(
          device, cudaErrorLaunchFailure,
          fmt::format("kernel {}: {} blocks are more than is simulated", grid_->name, blocks));
      return false;
    }
    order_.resize(blocks);
    std::iota(order_.begin(), order_.end(), 0u);
    const auto count =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(blocks, kMaxShuffledBlocks));
    for (std::uint32_t n = count; n > 1; --n)
      std::swap(order_[n - 1], order_[runtime.random.below(n)]);
    if (blocks > 1 && runtime.random.chance(1, 4)) writes_ = std::make_unique<GridWrites>();
    return true;
  }

  bool run(Runtime& runtime, int device, std::uint32_t block) {
    const dim3 size = grid_->grid;
    BlockJob job{.body = &grid_->body,
                 .grid = size,
                 .block = grid_->block,
                 .index = {block % size.x, block / size.x % size.y, block / size.x / size.y},
                 .shared_bytes = grid_->shared_bytes,
                 .memory = &runtime.device(device).memory,
                 .writes = writes_.get()};
    ++runtime.stats.blocks;
    const BlockFailure failure = run_block(job, runtime.random);
    if (failure.error == cudaSuccess) return true;
    runtime.fail(device, failure.error,
                 fmt::format("kernel {}, block ({},{},{}): {}", grid_->name, job.index.x,
                             job.index.y, job.index.z, failure.what));
    return false;
  }

  std::shared_ptr<const Grid> grid_;
  std::unique_ptr<GridWrites> writes_;  // it takes time: of some launches
  std::vector<std::uint32_t> order_;
  std::size_t next_ = 0;
};

class CopyWork final : public Work {
 public:
  explicit CopyWork(std::shared_ptr<const Copy> copy) : copy_(std::move(copy)) {}

  Progress step(Runtime& runtime, int device) override {
    const std::size_t total = copy_->bytes;
    if ((copy_->target_pinned && !runtime.pinned.contains(copy_->target, total)) ||
        (copy_->source_pinned && !runtime.pinned.contains(copy_->source, total))) {
      runtime.fail(device, cudaErrorIllegalAddress,
                   fmt::format("{}: its host memory was freed before the copy ran", copy_->what));
      return Progress::kDone;
    }
    if (part_ == Part::kWhole && total > 1 && runtime.random.chance(1, 3)) {
      // Torn: one half now, the other later.
      split_ = 1 + static_cast<std::size_t>(runtime.random.next() % (total - 1));
      part_ = runtime.random.chance(1, 2) ? Part::kFirst : Part::kSecond;
      const bool first = part_ == Part::kFirst;
      part_ = first ? Part::kSecond : Part::kFirst;
      return move(runtime, device, first ? 0 : split_, first ? split_ : total) ? Progress::kMore
                                                                               : Progress::kDone;
    }
    if (!move(runtime, device, part_ == Part::kSecond ? split_ : 0,
              part_ == Part::kFirst ? split_ : total))
      return Progress::kDone;
    count(runtime, total);
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override { return std::make_unique<CopyWork>(copy_); }

 private:
  enum class Part { kWhole, kFirst, kSecond };  // what is still to do

  // Bytes begin … end.
  bool move(Runtime& runtime, int device, std::size_t begin, std::size_t end) const {
    return run_guarded(runtime, device, copy_->what, [this, begin, end] {
      std::memmove(copy_->target + begin, copy_->source + begin, end - begin);
    });
  }

  void count(Runtime& runtime, std::size_t bytes) const {
    if (copy_->kind == cudaMemcpyHostToDevice) runtime.stats.host_to_device += bytes;
    if (copy_->kind == cudaMemcpyDeviceToHost) runtime.stats.device_to_host += bytes;
    if (copy_->kind == cudaMemcpyDeviceToDevice) runtime.stats.device_to_device += bytes;
  }

  std::shared_ptr<const Copy> copy_;
  Part part_ = Part::kWhole;
  std::size_t split_ = 0;
};

class DeviceWork final : public Work {
 public:
  DeviceWork(std::string name, std::function<void()> body)
      : name_(std::move(name)), body_(std::move(body)) {}

  Progress step(Runtime& runtime, int device) override {
    if (run_guarded(runtime, device, name_, body_)) ++runtime.stats.launches[name_];
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override {
    return std::make_unique<DeviceWork>(name_, body_);
  }

 private:
  std::string name_;
  std::function<void()> body_;
};

class FillWork final : public Work {
 public:
  FillWork(void* target, int value, std::size_t bytes)
      : target_(target), value_(value), bytes_(bytes) {}

  Progress step(Runtime& runtime, int device) override {
    if (run_guarded(runtime, device, "cudaMemset",
                    [this] { std::memset(target_, value_, bytes_); }))
      runtime.stats.filled += bytes_;
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override {
    return std::make_unique<FillWork>(target_, value_, bytes_);
  }

 private:
  void* target_;
  int value_;
  std::size_t bytes_;
};

class RecordWork final : public Work {
 public:
  explicit RecordWork(cudaEvent_t event) : event_(event) {}

  Progress step(Runtime& runtime, int device) override {
    if (std::ranges::none_of(runtime.events,
                             [&](const auto& event) { return event.get() == event_; })) {
      runtime.fail(device, cudaErrorInvalidResourceHandle,
                   "a graph records an event that was destroyed");
      return Progress::kDone;
    }
    event_->latest = std::make_shared<Completion>();
    event_->latest->time = std::chrono::steady_clock::now();
    event_->latest->done = true;
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override { return std::make_unique<RecordWork>(event_); }

 private:
  cudaEvent_t event_;
};

class FailingWork final : public Work {
 public:
  FailingWork(cudaError_t error, std::string line) : error_(error), line_(std::move(line)) {}

  Progress step(Runtime& runtime, int device) override {
    runtime.fail(device, error_, line_);
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override {
    return std::make_unique<FailingWork>(error_, line_);
  }

 private:
  cudaError_t error_;
  std::string line_;
};

}  // namespace

std::unique_ptr<Work> make_kernel_work(Grid grid) {
  return std::make_unique<KernelWork>(std::make_shared<const Grid>(std::move(grid)));
}
std::unique_ptr<Work> make_copy_work(Copy copy) {
  return std::make_unique<CopyWork>(std::make_shared<const Copy>(std::move(copy)));
}
std::unique_ptr<Work> make_fill_work(void* target, int value, std::size_t bytes) {
  return std::make_unique<FillWork>(target, value, bytes);
}
std::unique_ptr<Work> make_device_work(std::string name, std::function<void()> body) {
  return std::make_unique<DeviceWork>(std::move(name), std::move(body));
}
std::unique_ptr<Work> make_record_work(cudaEvent_t event) {
  return std::make_unique<RecordWork>(event);
}
std::unique_ptr<Work> make_failing_work(cudaError_t error, std::string line) {
  return std::make_unique<FailingWork>(error, std::move(line));
}

}  // namespace cuda_sim
