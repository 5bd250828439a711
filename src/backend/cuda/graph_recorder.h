// Ops captured into graphs, which the driver launches at once.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/cuda/cuda_handles.h"

namespace stagecoach::cuda {

class GraphRecorder {
 public:
  explicit GraphRecorder(cudaStream_t stream);
  GraphRecorder(const GraphRecorder&) = delete;
  GraphRecorder& operator=(const GraphRecorder&) = delete;

  // Not with STAGECOACH_CUDA_GRAPHS=off, nor once a graph was refused.
  bool records() const { return records_; }
  bool recording() const { return recording_; }

  // What the backend provides: addresses that are fixed into a graph, and may move with its scratch
  // memory.
  using Addresses = std::vector<const void*>;
  struct Environment {
    std::function<Addresses()> addresses;
    std::function<ClockOriginPtr()> origin;
  };
  // As Backend::record.
  std::unique_ptr<Recording> record(const std::function<void()>& ops,
                                    const Environment& environment);
  // An event that is recorded each time the graph under way runs.
  std::shared_ptr<CudaEvent> mark();

 private:
  class Graph;
  std::unique_ptr<Recording> refuse(const std::string& why);

  cudaStream_t stream_;
  bool records_ = true;
  bool recording_ = false;
  std::vector<std::shared_ptr<CudaEvent>> marks_;  // of the graph under way
};

}  // namespace stagecoach::cuda
