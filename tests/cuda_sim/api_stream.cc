// Streams, events, capture and graphs.
#include <fmt/format.h>

#include <algorithm>

#include "cuda_runtime_api.h"
#include "runtime.h"
#include "work.h"

using namespace cuda_sim;

namespace {

// A call that a capturing stream does not allow ends its capture.
cudaError_t refuse_in_capture(Runtime& runtime, Capture& capture, const char* function,
                              cudaError_t error) {
  capture.invalid = true;
  runtime.say(fmt::format("{}: not while the stream is captured", function));
  return error;
}

void merge(std::vector<std::size_t>& into, const std::vector<std::size_t>& from) {
  for (const std::size_t node : from)
    if (std::ranges::find(into, node) == into.end()) into.push_back(node);
}

// The stream waits for what an event of a capture marks, and joins the capture if it was in none.
cudaError_t wait_in_capture(Runtime& runtime, CUstream_st& stream, const CUevent_st& event) {
  const auto refuse = [&](Capture& capture, const char* why, cudaError_t error) {
    capture.invalid = true;
    runtime.say(fmt::format("cudaStreamWaitEvent: {}", why));
    return error;
  };
  if (event.capture == nullptr)
    return refuse(*stream.capture,
                  "a captured stream waits for an event from outside of the capture",
                  cudaErrorStreamCaptureIsolation);
  if (stream.capture == nullptr) {
    if (std::ranges::find(runtime.captures, event.capture) == runtime.captures.end())
      return refuse(*event.capture, "the event was recorded in a capture that has ended",
                    cudaErrorCapturedEvent);
    stream.capture = event.capture;
    stream.frontier = event.frontier;
    return cudaSuccess;
  }
  if (stream.capture != event.capture) {
    event.capture->invalid = true;
    return refuse(*stream.capture, "two captures would be merged", cudaErrorStreamCaptureMerge);
  }
  merge(stream.frontier, event.frontier);
  return cudaSuccess;
}

// Whether all nodes precede the frontier of the stream in which the capture began.
bool joined(const Capture& capture, const std::vector<std::size_t>& frontier) {
  std::vector<bool> reached(capture.nodes.size());
  for (const std::size_t node : frontier) reached[node] = true;
  for (std::size_t node = capture.nodes.size(); node-- > 0;)
    if (reached[node])
      for (const std::size_t before : capture.nodes[node].waits) reached[before] = true;
  return std::ranges::find(reached, false) == reached.end();
}

template <class Owner>
bool erase_handle(Owner& owner, const void* handle) {
  return std::erase_if(owner, [&](const auto& one) { return one.get() == handle; }) != 0;
}
template <class Owner>
bool knows_handle(const Owner& owner, const void* handle) {
  return std::ranges::any_of(owner, [&](const auto& one) { return one.get() == handle; });
}

}  // namespace

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return call("cudaStreamCreateWithFlags", CallKind::kAsync, [&](Runtime& runtime) {
    if (stream == nullptr || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    if (flags != cudaStreamNonBlocking) {
      runtime.say("a stream without cudaStreamNonBlocking waits for the legacy default stream");
      return cudaErrorInvalidValue;
    }
    runtime.streams.push_back(std::make_unique<CUstream_st>(thread_state().device));
    *stream = runtime.streams.back().get();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return call("cudaStreamDestroy", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const found = find_stream(runtime, stream, "cudaStreamDestroy");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (found->capture != nullptr)
      return refuse_in_capture(runtime, *found->capture, "cudaStreamDestroy",
                               cudaErrorStreamCaptureUnsupported);
    found->destroyed = true;
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return call("cudaStreamSynchronize", CallKind::kSync, [&](Runtime& runtime) {
    CUstream_st* const found = find_stream(runtime, stream, "cudaStreamSynchronize");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (found->capture != nullptr)
      return refuse_in_capture(runtime, *found->capture, "cudaStreamSynchronize",
                               cudaErrorStreamCaptureUnsupported);
    wait_for_stream(runtime, *found);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  return call("cudaStreamWaitEvent", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const waiter = find_stream(runtime, stream, "cudaStreamWaitEvent");
    const CUevent_st* const found = find_event(runtime, event, "cudaStreamWaitEvent");
    if (waiter == nullptr || found == nullptr) return cudaErrorInvalidResourceHandle;
    if (flags != cudaEventWaitDefault) return cudaErrorNotSupported;
    if (found->latest == nullptr && found->capture == nullptr) return cudaSuccess;
    if (waiter->capture != nullptr && waiter->capture->invalid)
      return cudaErrorStreamCaptureInvalidated;
    if (waiter->capture != nullptr || found->capture != nullptr)
      return wait_in_capture(runtime, *waiter, *found);
    if (found->latest->done) return cudaSuccess;
    return submit(runtime, *waiter,
                  {.what = "cudaStreamWaitEvent", .work = nullptr, .waits = {found->latest}});
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  return call("cudaEventCreateWithFlags", CallKind::kAsync, [&](Runtime& runtime) {
    if (event == nullptr || (flags & ~(cudaEventBlockingSync | cudaEventDisableTiming)) != 0)
      return cudaErrorInvalidValue;
    runtime.events.push_back(std::make_unique<CUevent_st>());
    *event = runtime.events.back().get();
    (*event)->device = thread_state().device;
    (*event)->timed = (flags & cudaEventDisableTiming) == 0;
    return cudaSuccess;
  });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return call("cudaEventDestroy", CallKind::kAsync, [&](Runtime& runtime) {
    return erase_handle(runtime.events, event) ? cudaSuccess : cudaErrorInvalidResourceHandle;
  });
}

namespace {

// With kExternal a captured record is a node, and the event none of the capture's.
enum class Record { kDefault, kExternal };

cudaError_t record(Runtime& runtime, cudaEvent_t event, cudaStream_t stream, const char* function,
                   Record how) {
  CUstream_st* const found_stream = find_stream(runtime, stream, function);
  CUevent_st* const found = find_event(runtime, event, function);
  if (found_stream == nullptr || found == nullptr) return cudaErrorInvalidResourceHandle;
  if (found->device != found_stream->device) return cudaErrorInvalidResourceHandle;
  const CapturePtr& capture = found_stream->capture;
  if (how == Record::kExternal) {
    if (capture != nullptr)
      return submit(runtime, *found_stream, {.what = function, .work = make_record_work(found)});
    runtime.say(fmt::format("{}: cudaEventRecordExternal outside of a capture", function));
    return cudaErrorInvalidValue;
  }
  if (capture != nullptr) {
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    found->capture = capture;
    found->frontier = found_stream->frontier;
    return cudaSuccess;
  }
  found->capture = nullptr;
  Operation operation{.what = function};
  found->latest = operation.completion;
  return submit(runtime, *found_stream, std::move(operation));
}

}  // namespace

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return call("cudaEventRecord", CallKind::kAsync, [&](Runtime& runtime) {
    return record(runtime, event, stream, "cudaEventRecord", Record::kDefault);
  });
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  return call("cudaEventRecordWithFlags", CallKind::kAsync, [&](Runtime& runtime) {
    if (flags > cudaEventRecordExternal) return cudaErrorInvalidValue;
    return record(runtime, event, stream, "cudaEventRecordWithFlags",
                  flags == cudaEventRecordExternal ? Record::kExternal : Record::kDefault);
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return call("cudaEventSynchronize", CallKind::kSync, [&](Runtime& runtime) {
    const CUevent_st* const found = find_event(runtime, event, "cudaEventSynchronize");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (found->capture != nullptr)
      return refuse_in_capture(runtime, *found->capture, "cudaEventSynchronize",
                               cudaErrorCapturedEvent);
    if (found->latest != nullptr) wait_for(runtime, CompletionPtr(found->latest));
    return cudaSuccess;
  });
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  return call("cudaEventElapsedTime", CallKind::kAsync, [&](Runtime& runtime) {
    const CUevent_st* const first = find_event(runtime, start, "cudaEventElapsedTime");
    const CUevent_st* const last = find_event(runtime, end, "cudaEventElapsedTime");
    if (first == nullptr || last == nullptr || !first->timed || !last->timed ||
        first->latest == nullptr || last->latest == nullptr)
      return cudaErrorInvalidResourceHandle;
    if (!first->latest->done || !last->latest->done) return cudaErrorNotReady;
    *milliseconds =
        std::chrono::duration<float, std::milli>(last->latest->time - first->latest->time).count();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return call("cudaStreamBeginCapture", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const found = find_stream(runtime, stream, "cudaStreamBeginCapture");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (found->capture != nullptr) return cudaErrorIllegalState;
    found->capture = std::make_shared<Capture>();
    found->capture->origin = found;
    found->capture->mode = mode;
    found->capture->thread = thread_state().id;
    found->frontier.clear();
    runtime.captures.push_back(found->capture);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return call("cudaStreamEndCapture", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const found = find_stream(runtime, stream, "cudaStreamEndCapture");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (graph == nullptr) return cudaErrorInvalidValue;
    *graph = nullptr;
    const CapturePtr capture = found->capture;
    if (capture == nullptr) return cudaErrorIllegalState;
    if (capture->origin != found) {
      capture->invalid = true;
      return cudaErrorStreamCaptureUnmatched;
    }
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != thread_state().id)
      return cudaErrorStreamCaptureWrongThread;
    const bool complete = joined(*capture, found->frontier);
    for (const auto& one : runtime.streams)
      if (one->capture == capture) one->capture = nullptr;
    std::erase(runtime.captures, capture);
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!complete) {
      runtime.say("cudaStreamEndCapture: work of another stream was not joined by an event");
      return cudaErrorStreamCaptureUnjoined;
    }
    runtime.graphs.push_back(std::make_unique<CUgraph_st>());
    runtime.graphs.back()->nodes = std::move(capture->nodes);
    *graph = runtime.graphs.back().get();
    return cudaSuccess;
  });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return call("cudaStreamIsCapturing", CallKind::kAsync, [&](Runtime& runtime) {
    const CUstream_st* const found = find_stream(runtime, stream, "cudaStreamIsCapturing");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    *status = found->capture == nullptr ? cudaStreamCaptureStatusNone
              : found->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                        : cudaStreamCaptureStatusActive;
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  return call("cudaGraphGetNodes", CallKind::kAsync, [&](Runtime& runtime) {
    if (!knows_handle(runtime.graphs, graph) || count == nullptr) return cudaErrorInvalidValue;
    if (nodes != nullptr) return cudaErrorNotSupported;
    *count = graph->nodes.size();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags) {
  return call("cudaGraphInstantiate", CallKind::kAsync, [&](Runtime& runtime) {
    if (exec == nullptr || !knows_handle(runtime.graphs, graph)) return cudaErrorInvalidValue;
    if (flags != 0) return cudaErrorNotSupported;
    std::vector<GraphNode> nodes;
    for (const GraphNode& node : graph->nodes)
      nodes.push_back({node.what, node.work == nullptr ? nullptr : node.work->clone(), node.waits});
    runtime.execs.push_back(std::make_unique<CUgraphExec_st>());
    *exec = runtime.execs.back().get();
    (*exec)->nodes = std::make_shared<const std::vector<GraphNode>>(std::move(nodes));
    return cudaSuccess;
  });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t exec, cudaStream_t stream) {
  return call("cudaGraphUpload", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const found = find_stream(runtime, stream, "cudaGraphUpload");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (!knows_handle(runtime.execs, exec)) return cudaErrorInvalidValue;
    if (found->capture != nullptr)
      return refuse_in_capture(runtime, *found->capture, "cudaGraphUpload",
                               cudaErrorStreamCaptureUnsupported);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return call("cudaGraphLaunch", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const found = find_stream(runtime, stream, "cudaGraphLaunch");
    if (found == nullptr) return cudaErrorInvalidResourceHandle;
    if (!knows_handle(runtime.execs, exec)) return cudaErrorInvalidValue;
    if (found->capture != nullptr)
      return refuse_in_capture(runtime, *found->capture, "cudaGraphLaunch",
                               cudaErrorStreamCaptureUnsupported);
    Operation operation{.what = "graph", .work = make_graph_work(exec->nodes)};
    if (exec->last != nullptr && !exec->last->done) operation.waits.push_back(exec->last);
    exec->last = operation.completion;
    return submit(runtime, *found, std::move(operation));
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return call("cudaGraphDestroy", CallKind::kAsync, [&](Runtime& runtime) {
    return erase_handle(runtime.graphs, graph) ? cudaSuccess : cudaErrorInvalidValue;
  });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  return call("cudaGraphExecDestroy", CallKind::kAsync, [&](Runtime& runtime) {
    return erase_handle(runtime.execs, exec) ? cudaSuccess : cudaErrorInvalidValue;
  });
}
