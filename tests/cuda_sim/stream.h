// Streams as queues of ops. Nothing runs until something waits for it or chance lets it; what is
// ready runs in an order drawn from the seed, so only what the program ordered is ordered.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "driver_types.h"

namespace cuda_sim {

struct Runtime;

// That an op has ended (or was dropped): what events and waiting calls look at.
struct Completion {
  bool done = false;
  std::chrono::steady_clock::time_point time;
  CUstream_st* stream = nullptr;  // valid until done
};
using CompletionPtr = std::shared_ptr<Completion>;

// What an op does. A step may do a part, so that ops of other streams come in between.
class Work {
 public:
  virtual ~Work() = default;
  enum class Progress { kDone, kMore };
  virtual Progress step(Runtime& runtime, int device) = 0;
  virtual std::unique_ptr<Work> clone() const = 0;  // as it was before its first step
};

struct Operation {
  std::string what;
  std::unique_ptr<Work> work = {};  // may be null: only waits or marks
  std::vector<CompletionPtr> waits = {};
  CompletionPtr completion = std::make_shared<Completion>();
};

struct GraphNode {
  std::string what;
  std::unique_ptr<Work> work;
  std::vector<std::size_t> waits;
};

// Streams that are being captured into one graph.
struct Capture {
  CUstream_st* origin = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread;
  bool invalid = false;
  std::vector<GraphNode> nodes;
};
using CapturePtr = std::shared_ptr<Capture>;

}  // namespace cuda_sim

struct CUstream_st {
  explicit CUstream_st(int number) : device(number) {}

  int device;
  bool destroyed = false;
  std::deque<cuda_sim::Operation> queue;
  cuda_sim::CapturePtr capture;
  std::vector<std::size_t> frontier;  // of its capture: what the next node waits for
};

struct CUevent_st {
  int device = 0;
  bool timed = true;
  cuda_sim::CompletionPtr latest;  // of the newest record; null: none
  cuda_sim::CapturePtr capture;    // the newest record was captured
  std::vector<std::size_t> frontier;
};

struct CUgraph_st {
  std::vector<cuda_sim::GraphNode> nodes;
};

struct CUgraphExec_st {
  std::shared_ptr<const std::vector<cuda_sim::GraphNode>> nodes;
  cuda_sim::CompletionPtr last;  // launches of one executable graph do not overlap
};

namespace cuda_sim {

// Queues on the stream, or adds to the graph that it is captured into.
cudaError_t submit(Runtime& runtime, CUstream_st& stream, Operation operation);

void wait_for(Runtime& runtime, const CompletionPtr& completion);
void wait_for_stream(Runtime& runtime, CUstream_st& stream);
void wait_for_device(Runtime& runtime, int device);
// At every call: perhaps nothing, perhaps some ready ops, perhaps all.
void run_by_chance(Runtime& runtime);

// nullptr and one line if it is no stream of the program's, or the legacy default stream.
CUstream_st* find_stream(Runtime& runtime, cudaStream_t stream, const char* function);
CUevent_st* find_event(Runtime& runtime, cudaEvent_t event, const char* function);

std::unique_ptr<Work> make_graph_work(std::shared_ptr<const std::vector<GraphNode>> nodes);

}  // namespace cuda_sim
