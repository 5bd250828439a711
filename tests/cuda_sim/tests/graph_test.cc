// Capture and replay.
#include <gtest/gtest.h>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

class Graphs : public SimTest {};

__global__ void add(float* x, float value, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) x[i] += value;
}
__global__ void multiply(float* x, float value, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) x[i] *= value;
}
__global__ void sum_of(const float* a, const float* b, float* c, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) c[i] = a[i] + b[i];
}

struct Exec {
  explicit Exec(cudaGraph_t graph) {
    EXPECT_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    EXPECT_CUDA(cudaGraphDestroy(graph));
  }
  ~Exec() { (void)cudaGraphExecDestroy(exec); }
  cudaGraphExec_t exec = nullptr;
};

TEST_F(Graphs, ReplayRunsWhatWasCaptured) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    DeviceArray<float> x(std::vector<float>(100, 1.0f));
    cudaGraph_t graph = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    float value = 2.0f;
    launch_kernel("add", add, 4, 32, 0, stream, x.get(), value, 100);
    value = 3.0f;
    launch_kernel("multiply", multiply, 4, 32, 0, stream, x.get(), value, 100);
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    EXPECT_EQ(x.read(stream), std::vector<float>(100, 1.0f));  // nothing ran
    std::size_t nodes = 0;
    EXPECT_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    EXPECT_EQ(nodes, 2u);
    const Exec exec(graph);
    ASSERT_CUDA(cudaGraphLaunch(exec.exec, stream));
    ASSERT_CUDA(cudaGraphLaunch(exec.exec, stream));
    EXPECT_EQ(x.read(stream), std::vector<float>(100, 33.0f));
    const cuda_sim::Statistics stats = cuda_sim::statistics();
    EXPECT_EQ(stats.graph_launches, 2u);
    EXPECT_EQ(stats.launches.at("add"), 2u);
    EXPECT_EQ(stats.calls.at("launch"), 2u);
  }
}

// Two branches, joined or not before the sum.
template <bool kJoined>
bool fork_and_join(std::uint64_t seed) {
  cuda_sim::reset({.seed = seed});
  Stream main, side;
  Event forked, joined;
  DeviceArray<float> a(std::vector<float>(32, 1.0f)), b(std::vector<float>(32, 1.0f)), c(32);
  cudaGraph_t graph = nullptr;
  EXPECT_CUDA(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed));
  EXPECT_CUDA(cudaEventRecord(forked, main));
  EXPECT_CUDA(cudaStreamWaitEvent(side, forked, 0));
  launch_kernel("add", add, 1, 32, 0, main, a.get(), 1.0f, 32);
  launch_kernel("add", add, 1, 32, 0, side, b.get(), 10.0f, 32);
  EXPECT_CUDA(cudaEventRecord(joined, side));
  if (kJoined) {
    EXPECT_CUDA(cudaStreamWaitEvent(main, joined, 0));
  }
  launch_kernel("sum_of", sum_of, 1, 32, 0, main, a.get(), b.get(), c.get(), 32);
  if (!kJoined) {
    EXPECT_CUDA(cudaStreamWaitEvent(main, joined, 0));
    launch_kernel("add", add, 1, 32, 0, main, a.get(), 1.0f, 32);
  }
  EXPECT_CUDA(cudaStreamEndCapture(main, &graph));
  const Exec exec(graph);
  EXPECT_CUDA(cudaGraphLaunch(exec.exec, main));
  return c.read(main) == std::vector<float>(32, 13.0f);
}

TEST_F(Graphs, KeepTheirDependenciesAndNoOthers) {
  int right = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_TRUE(fork_and_join<true>(seed));
    right += fork_and_join<false>(seed);
  }
  EXPECT_GT(right, 0);
  EXPECT_LT(right, 50);
}

TEST_F(Graphs, CallsThatWaitEndTheCapture) {
  Stream stream;
  Event event;
  void* memory = nullptr;
  cudaGraph_t graph = nullptr;
  const auto refused = [&](cudaStreamCaptureMode mode, const auto& wrong) {
    EXPECT_CUDA(cudaStreamBeginCapture(stream, mode));
    wrong();
    cudaStreamCaptureStatus status{};
    EXPECT_CUDA(cudaStreamIsCapturing(stream, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
    EXPECT_CUDA_ERROR(cudaMemsetAsync(memory, 0, 0, nullptr), cudaErrorInvalidResourceHandle);
    EXPECT_CUDA_ERROR(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
    (void)cudaGetLastError();
  };
  for (const auto mode : {cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
    refused(mode, [&] {
      EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorStreamCaptureUnsupported);
    });
    refused(mode,
            [&] { EXPECT_CUDA_ERROR(cudaDeviceSynchronize(), cudaErrorStreamCaptureUnsupported); });
  }
  refused(cudaStreamCaptureModeThreadLocal,
          [&] { EXPECT_CUDA_ERROR(cudaMalloc(&memory, 4), cudaErrorStreamCaptureUnsupported); });
  // Relaxed: what is merely unsafe is the program's business.
  EXPECT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  EXPECT_CUDA(cudaMalloc(&memory, 4));
  EXPECT_CUDA(cudaStreamEndCapture(stream, &graph));
  EXPECT_CUDA(cudaGraphDestroy(graph));
  EXPECT_CUDA(cudaFree(memory));
}

TEST_F(Graphs, UnjoinedAndForeignWorkIsRefused) {
  Stream main, side;
  Event event, foreign;
  DeviceArray<float> a(32);
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed));
  ASSERT_CUDA(cudaEventRecord(event, main));
  ASSERT_CUDA(cudaStreamWaitEvent(side, event, 0));
  launch_kernel("add", add, 1, 32, 0, side, a.get(), 1.0f, 32);
  EXPECT_CUDA_ERROR(cudaEventSynchronize(event), cudaErrorCapturedEvent);
  EXPECT_CUDA_ERROR(cudaStreamEndCapture(main, &graph), cudaErrorStreamCaptureInvalidated);

  ASSERT_CUDA(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed));
  ASSERT_CUDA(cudaEventRecord(event, main));
  ASSERT_CUDA(cudaStreamWaitEvent(side, event, 0));
  launch_kernel("add", add, 1, 32, 0, side, a.get(), 1.0f, 32);
  EXPECT_CUDA_ERROR(cudaStreamEndCapture(main, &graph), cudaErrorStreamCaptureUnjoined);

  ASSERT_CUDA(cudaEventRecord(foreign, side));
  ASSERT_CUDA(cudaStreamBeginCapture(main, cudaStreamCaptureModeRelaxed));
  EXPECT_CUDA_ERROR(cudaStreamWaitEvent(main, foreign, 0), cudaErrorStreamCaptureIsolation);
  EXPECT_CUDA_ERROR(cudaStreamEndCapture(main, &graph), cudaErrorStreamCaptureInvalidated);
  (void)cudaGetLastError();
}

TEST_F(Graphs, ReadPinnedMemoryWhenTheyRun) {
  Stream stream;
  PinnedArray<int> host(1);
  DeviceArray<int> x(1);
  cudaGraph_t graph = nullptr;
  host[0] = 1;
  ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ASSERT_CUDA(cudaMemcpyAsync(x.get(), host.get(), 4, cudaMemcpyHostToDevice, stream));
  ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
  const Exec exec(graph);
  for (int value = 5; value < 8; ++value) {
    host[0] = value;
    ASSERT_CUDA(cudaGraphLaunch(exec.exec, stream));
    EXPECT_EQ(x.read(stream)[0], value);
  }
}

TEST_F(Graphs, RecordEventsEachTimeTheyRun) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    cuda_sim::reset({.seed = seed});
    Stream stream;
    const unsigned timed = cudaEventDefault;
    Event origin(timed), begin(timed), end(timed);
    DeviceArray<float> x(std::vector<float>(32, 1.0f));
    EXPECT_CUDA_ERROR(cudaEventRecordWithFlags(begin, stream, cudaEventRecordExternal),
                      cudaErrorInvalidValue);
    ASSERT_CUDA(cudaEventRecordWithFlags(origin, stream, cudaEventRecordDefault));
    cudaGraph_t graph = nullptr;
    ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    ASSERT_CUDA(cudaEventRecordWithFlags(begin, stream, cudaEventRecordExternal));
    launch_kernel("add", add, 1, 32, 0, stream, x.get(), 1.0f, 32);
    ASSERT_CUDA(cudaEventRecordWithFlags(end, stream, cudaEventRecordExternal));
    ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
    std::size_t nodes = 0;
    EXPECT_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    EXPECT_EQ(nodes, 3u);
    const Exec exec(graph);
    float before = -1, until_begin = 0, until_end = 0;
    EXPECT_CUDA_ERROR(cudaEventElapsedTime(&before, origin, begin), cudaErrorInvalidResourceHandle);
    for (int launch = 0; launch < 3; ++launch) {
      ASSERT_CUDA(cudaGraphLaunch(exec.exec, stream));
      ASSERT_CUDA(cudaStreamSynchronize(stream));
      ASSERT_CUDA(cudaEventElapsedTime(&until_begin, origin, begin));
      ASSERT_CUDA(cudaEventElapsedTime(&until_end, origin, end));
      EXPECT_LT(before, until_begin);
      EXPECT_LT(until_begin, until_end);
      before = until_end;
    }
  }
}

TEST_F(Graphs, FailWhereTheirEventsAreGone) {
  Stream stream;
  cudaEvent_t event = nullptr;
  cudaGraph_t graph = nullptr;
  ASSERT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDefault));
  ASSERT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ASSERT_CUDA(cudaEventRecordWithFlags(event, stream, cudaEventRecordExternal));
  ASSERT_CUDA(cudaStreamEndCapture(stream, &graph));
  const Exec exec(graph);
  ASSERT_CUDA(cudaEventDestroy(event));
  ASSERT_CUDA(cudaGraphLaunch(exec.exec, stream));
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
}

}  // namespace
