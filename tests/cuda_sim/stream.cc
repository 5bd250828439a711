#include "stream.h"

#include <fmt/format.h>

#include <algorithm>

#include "cuda_runtime_api.h"
#include "runtime.h"
#include "work.h"

namespace cuda_sim {
namespace {

bool ready(const CUstream_st& stream) {
  return !stream.queue.empty() &&
         std::ranges::all_of(stream.queue.front().waits,
                             [](const CompletionPtr& one) { return one->done; });
}

template <class Visit>
void for_each_stream(Runtime& runtime, Visit visit) {
  for (const auto& device : runtime.devices) visit(device->legacy);
  for (const auto& stream : runtime.streams) visit(*stream);
}

CUstream_st* random_ready(Runtime& runtime) {
  std::vector<CUstream_st*> candidates;
  for_each_stream(runtime, [&](CUstream_st& stream) {
    if (ready(stream)) candidates.push_back(&stream);
  });
  if (candidates.empty()) return nullptr;
  return candidates[runtime.random.below(static_cast<std::uint32_t>(candidates.size()))];
}

// The stream to run so that nothing runs that the completion does not need.
CUstream_st* needed_for(const CompletionPtr& completion) {
  CUstream_st* stream = completion->stream;
  for (;;) {
    const auto& waits = stream->queue.front().waits;
    const auto open =
        std::ranges::find_if(waits, [](const CompletionPtr& one) { return !one->done; });
    if (open == waits.end()) return stream;
    stream = (*open)->stream;
  }
}

// One step of the front op, which is ready.
void step(Runtime& runtime, CUstream_st& stream) {
  Operation& front = stream.queue.front();
  const Device& device = runtime.device(stream.device);
  if (front.work != nullptr && device.failed == cudaSuccess) {
    const Work::Progress progress = front.work->step(runtime, stream.device);
    for (const auto& each : runtime.devices)
      if (!each->memory.canaries_intact()) {
        runtime.fail(stream.device, cudaErrorIllegalAddress,
                     fmt::format("{} wrote outside of an allocation", front.what));
        each->memory.repair_canaries();
      }
    if (progress == Work::Progress::kMore && device.failed == cudaSuccess) return;
    ++runtime.stats.operations;
  }
  front.completion->time = std::chrono::steady_clock::now();
  front.completion->done = true;
  stream.queue.pop_front();
}

bool step_any(Runtime& runtime) {
  CUstream_st* const stream = random_ready(runtime);
  if (stream != nullptr) step(runtime, *stream);
  return stream != nullptr;
}

class GraphWork final : public Work {
 public:
  explicit GraphWork(std::shared_ptr<const std::vector<GraphNode>> nodes)
      : nodes_(std::move(nodes)), done_(nodes_->size()), started_(nodes_->size()) {}

  Progress step(Runtime& runtime, int device) override {
    while (left() != 0) {
      std::vector<std::size_t> candidates;
      for (std::size_t n = 0; n < nodes_->size(); ++n) {
        const auto& waits = (*nodes_)[n].waits;
        if (!done_[n] && std::ranges::all_of(waits, [&](std::size_t w) { return done_[w]; }))
          candidates.push_back(n);
      }
      const std::size_t n =
          candidates[runtime.random.below(static_cast<std::uint32_t>(candidates.size()))];
      const Work* const work = (*nodes_)[n].work.get();
      if (work != nullptr) {
        if (started_[n] == nullptr) started_[n] = work->clone();
        done_[n] = started_[n]->step(runtime, device) == Progress::kDone;
      } else {
        done_[n] = true;
      }
      if (runtime.device(device).failed != cudaSuccess) return Progress::kDone;
      if (done_[n]) {
        started_[n].reset();
        if (work != nullptr && left() != 0) ++runtime.stats.operations;
      }
      if (left() != 0 && runtime.random.chance(1, 8)) return Progress::kMore;
    }
    ++runtime.stats.graph_launches;
    return Progress::kDone;
  }
  std::unique_ptr<Work> clone() const override { return std::make_unique<GraphWork>(nodes_); }

 private:
  std::size_t left() const { return static_cast<std::size_t>(std::ranges::count(done_, false)); }

  std::shared_ptr<const std::vector<GraphNode>> nodes_;
  std::vector<bool> done_;
  std::vector<std::unique_ptr<Work>> started_;
};

}  // namespace

std::unique_ptr<Work> make_graph_work(std::shared_ptr<const std::vector<GraphNode>> nodes) {
  return std::make_unique<GraphWork>(std::move(nodes));
}

cudaError_t submit(Runtime& runtime, CUstream_st& stream, Operation operation) {
  if (runtime.injected_later != cudaSuccess)
    operation.work = make_failing_work(runtime.injected_later,
                                       fmt::format("{} fails with {}, as injected", operation.what,
                                                   cudaGetErrorName(runtime.injected_later)));
  if (stream.capture != nullptr) {
    Capture& capture = *stream.capture;
    if (capture.invalid) return cudaErrorStreamCaptureInvalidated;
    capture.nodes.push_back(
        {std::move(operation.what), std::move(operation.work), stream.frontier});
    stream.frontier = {capture.nodes.size() - 1};
    return cudaSuccess;
  }
  if (runtime.device(stream.device).failed != cudaSuccess) operation.work = nullptr;
  operation.completion->stream = &stream;
  stream.queue.push_back(std::move(operation));
  return cudaSuccess;
}

void wait_for(Runtime& runtime, const CompletionPtr& completion) {
  while (!completion->done) {
    // How much else gets done on the way depends on the mood.
    const bool stray = runtime.mood == Runtime::Mood::kEager ||
                       (runtime.mood == Runtime::Mood::kMixed && runtime.random.chance(1, 2));
    CUstream_st* const stream = stray ? random_ready(runtime) : needed_for(completion);
    step(runtime, stream != nullptr ? *stream : *needed_for(completion));
  }
}

void wait_for_stream(Runtime& runtime, CUstream_st& stream) {
  if (stream.queue.empty()) return;
  const CompletionPtr last = stream.queue.back().completion;
  wait_for(runtime, last);
}

void wait_for_device(Runtime& runtime, int device) {
  std::vector<CompletionPtr> last;
  for_each_stream(runtime, [&](CUstream_st& stream) {
    if (stream.device == device && !stream.queue.empty())
      last.push_back(stream.queue.back().completion);
  });
  while (!last.empty()) {
    const std::size_t n = runtime.random.below(static_cast<std::uint32_t>(last.size()));
    wait_for(runtime, last[n]);
    last.erase(last.begin() + static_cast<std::ptrdiff_t>(n));
  }
}

void run_by_chance(Runtime& runtime) {
  if (runtime.mood_left == 0) {
    runtime.mood_left = 8 + runtime.random.below(56);
    runtime.mood = static_cast<Runtime::Mood>(runtime.random.below(3));
  }
  --runtime.mood_left;
  if (runtime.mood == Runtime::Mood::kLate) return;
  if (runtime.mood == Runtime::Mood::kEager) {
    while (step_any(runtime)) {
    }
    return;
  }
  if (runtime.random.chance(1, 2)) return;
  for (std::uint32_t steps = 1 + runtime.random.below(4); steps > 0 && step_any(runtime); --steps) {
  }
}

CUstream_st* find_stream(Runtime& runtime, cudaStream_t stream, const char* function) {
  if (stream == nullptr || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    runtime.say(fmt::format("{} names a default stream; streams here are explicit", function));
    return nullptr;
  }
  for (const auto& one : runtime.streams)
    if (one.get() == stream && !one->destroyed) return stream;
  runtime.say(fmt::format("{} names a stream that does not exist", function));
  return nullptr;
}

CUevent_st* find_event(Runtime& runtime, cudaEvent_t event, const char* function) {
  for (const auto& one : runtime.events)
    if (one.get() == event) return event;
  runtime.say(fmt::format("{} names an event that does not exist", function));
  return nullptr;
}

}  // namespace cuda_sim
