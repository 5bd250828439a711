#include "backend/cuda/graph_recorder.h"

#include <cstdlib>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace stagecoach::cuda {
namespace {

bool wanted() {
  const char* const variable = std::getenv("STAGECOACH_CUDA_GRAPHS");
  const std::string_view value = variable != nullptr ? variable : "";
  if (!value.empty() && value != "on" && value != "off")
    throw usage_error(fmt::format("STAGECOACH_CUDA_GRAPHS is '{}', not on or off", value),
                      "leave it out, or say off to launch each op by itself");
  return value != "off";
}

}  // namespace

class GraphRecorder::Graph final : public Recording {
 public:
  Graph(cudaStream_t stream, Environment environment)
      : stream_(stream),
        environment_(std::move(environment)),
        addresses_(environment_.addresses()) {}
  ~Graph() override {
    if (exec_ != nullptr) cudaGraphExecDestroy(exec_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  cudaError_t instantiate(cudaGraph_t graph, std::vector<std::shared_ptr<CudaEvent>> marks) {
    marks_ = std::move(marks);
    const cudaError_t made = cudaGraphInstantiate(&exec_, graph, 0);
    // What it takes of the device's memory it takes now, where it can be done without: not as it is
    // first launched.
    return made == cudaSuccess ? cudaGraphUpload(exec_, stream_) : made;
  }

  bool replay() override {
    if (environment_.addresses() != addresses_) return false;
    const ClockOriginPtr origin = environment_.origin();
    for (const auto& mark : marks_) mark->set_origin(origin);
    check(cudaGraphLaunch(exec_, stream_), "launching a graph");
    return true;
  }

 private:
  cudaStream_t stream_;
  Environment environment_;
  Addresses addresses_;
  std::vector<std::shared_ptr<CudaEvent>> marks_;
  cudaGraphExec_t exec_ = nullptr;
};

GraphRecorder::GraphRecorder(cudaStream_t stream) : stream_(stream), records_(wanted()) {}

// Ops go on one by one, unless the device has failed: nothing is lost but time.
std::unique_ptr<Recording> GraphRecorder::refuse(const std::string& why) {
  check_device(stream_);
  records_ = false;
  spdlog::warn("ops cannot be recorded as a graph ({}): the GPU is given each by itself", why);
  return nullptr;
}

std::unique_ptr<Recording> GraphRecorder::record(const std::function<void()>& ops,
                                                 const Environment& environment) {
  STAGECOACH_CHECK(!recording_);
  if (!records_) return nullptr;
  auto result = std::make_unique<Graph>(stream_, environment);
  // Thread-local: another thread goes on copying meanwhile.
  cudaError_t status = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
  if (status != cudaSuccess) return refuse(cudaGetErrorString(status));
  recording_ = true;
  marks_.clear();
  cudaGraph_t graph = nullptr;
  try {
    ops();
  } catch (const std::exception& error) {
    recording_ = false;
    status = cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    // What a capture forbids is no fault of the op, which will do by itself.
    if (status == cudaErrorStreamCaptureInvalidated) return refuse(error.what());
    throw;
  }
  recording_ = false;
  status = cudaStreamEndCapture(stream_, &graph);
  if (status != cudaSuccess) return refuse(cudaGetErrorString(status));
  status = result->instantiate(graph, std::exchange(marks_, {}));
  cudaGraphDestroy(graph);
  if (status != cudaSuccess) return refuse(cudaGetErrorString(status));
  return result;
}

std::shared_ptr<CudaEvent> GraphRecorder::mark() {
  return marks_.emplace_back(
      std::make_shared<CudaEvent>(nullptr, stream_, cudaEventRecordExternal));
}

}  // namespace stagecoach::cuda
