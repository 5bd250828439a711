// Settings, faults, statistics: everything of cuda_sim.h, and the names of errors.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "cublas_v2.h"
#include "cuda_sim.h"
#include "fibers.h"
#include "runtime.h"

namespace cuda_sim {
namespace {

template <class T>
void read_number(const char* name, T& value, bool with_unit = false) {
  const std::string variable = fmt::format("STAGECOACH_CUDA_SIM_{}", name);
  const char* const text = std::getenv(variable.c_str());
  if (text == nullptr || *text == '\0') return;
  const char* const end = text + std::strlen(text);
  T number{};
  const auto [rest, error] = std::from_chars(text, end, number);
  T factor = 1;
  std::string_view unit(rest, static_cast<std::size_t>(end - rest));
  if (with_unit && unit == "KiB") factor = static_cast<T>(1) << 10;
  if (with_unit && unit == "MiB") factor = static_cast<T>(1) << 20;
  if (with_unit && unit == "GiB") factor = static_cast<T>(1) << 30;
  if (factor != 1) unit = {};
  if (error != std::errc{} || !unit.empty()) {
    fmt::print(stderr, "cuda_sim: {}={} is no {}\n", variable, text,
               with_unit ? "number of bytes, as 1048576 or 512MiB" : "number");
    std::abort();
  }
  value = number * factor;
}

// cudaError…: positive; CUBLAS_STATUS_…: negative; unknown: 0.
int error_of(std::string_view name) {
#define CUDA_SIM_NAMED(error, value, text) \
  if (name == #error) return value;
  CUDA_SIM_ERRORS(CUDA_SIM_NAMED)
#undef CUDA_SIM_NAMED
  for (int status = 1; status <= CUBLAS_STATUS_LICENSE_ERROR; ++status)
    if (name == cublasGetStatusName(static_cast<cublasStatus_t>(status))) return -status;
  return 0;
}

// Every function that is counted, and so can fail as injected.
constexpr std::string_view kFunctions[] = {"any",
                                           "launch",
                                           "cublasCreate",
                                           "cublasDestroy",
                                           "cublasGemmEx",
                                           "cublasSetStream",
                                           "cublasSetWorkspace",
                                           "cudaDeviceGetAttribute",
                                           "cudaDeviceSynchronize",
                                           "cudaDriverGetVersion",
                                           "cudaEventCreateWithFlags",
                                           "cudaEventDestroy",
                                           "cudaEventElapsedTime",
                                           "cudaEventRecord",
                                           "cudaEventRecordWithFlags",
                                           "cudaEventSynchronize",
                                           "cudaFree",
                                           "cudaFreeHost",
                                           "cudaFuncSetAttribute",
                                           "cudaGetDevice",
                                           "cudaGetDeviceCount",
                                           "cudaGetDeviceProperties",
                                           "cudaGraphDestroy",
                                           "cudaGraphExecDestroy",
                                           "cudaGraphGetNodes",
                                           "cudaGraphInstantiate",
                                           "cudaGraphLaunch",
                                           "cudaGraphUpload",
                                           "cudaHostAlloc",
                                           "cudaHostGetDevicePointer",
                                           "cudaHostRegister",
                                           "cudaHostUnregister",
                                           "cudaMalloc",
                                           "cudaMallocHost",
                                           "cudaMemGetInfo",
                                           "cudaMemcpy",
                                           "cudaMemcpyAsync",
                                           "cudaMemset",
                                           "cudaMemsetAsync",
                                           "cudaRuntimeGetVersion",
                                           "cudaSetDevice",
                                           "cudaStreamBeginCapture",
                                           "cudaStreamCreateWithFlags",
                                           "cudaStreamDestroy",
                                           "cudaStreamEndCapture",
                                           "cudaStreamIsCapturing",
                                           "cudaStreamSynchronize",
                                           "cudaStreamWaitEvent"};

}  // namespace

bool FaultList::is_counted(std::string_view function) {
  return std::ranges::find(kFunctions, function) != std::end(kFunctions);
}

Config config_from_environment() {
  Config config;
  read_number("SEED", config.seed);
  config.tensor_sums = config.seed;
  read_number("MEMORY", config.memory, true);
  read_number("PIECE", config.piece, true);
  read_number("DEVICES", config.devices);
  read_number("DRIVER", config.driver);
  read_number("CAPABILITY", config.capability);
  if (const char* faults = std::getenv("STAGECOACH_CUDA_SIM_FAULTS")) config.faults = faults;
  return config;
}

std::string FaultList::parse(const std::string& text) {
  faults_.clear();
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string one = text.substr(begin, end - begin);
    begin = end + 1;
    const std::size_t first = one.find(':');
    const std::size_t second = first == std::string::npos ? first : one.find(':', first + 1);
    Fault fault{};
    if (second != std::string::npos) {
      fault.function = one.substr(0, first);
      const auto [rest, error] =
          std::from_chars(one.data() + first + 1, one.data() + second, fault.left);
      if (error == std::errc{} && rest == one.data() + second)
        fault.error = error_of(std::string_view(one).substr(second + 1));
    }
    if (fault.function.empty() || fault.left == 0 || fault.error == 0)
      return fmt::format(
          "fault {} is not of the form FUNCTION:N:ERROR, as "
          "cudaMalloc:3:cudaErrorMemoryAllocation",
          one);
    if (!is_counted(fault.function))
      return fmt::format("fault {} names no function that is counted", one);
    if (fault.error < 0 && !fault.function.starts_with("cublas"))
      return fmt::format("fault {}: only functions of cuBLAS return its statuses", one);
    faults_.push_back(fault);
  }
  return {};
}

int FaultList::next(const std::string& function) {
  int error = 0;
  for (Fault& fault : faults_)
    if (fault.left != 0 && (fault.function == "any" || fault.function == function) &&
        --fault.left == 0 && error == 0)
      error = fault.error;
  return error;
}

std::string leaks() {
  Runtime& state = runtime();
  std::lock_guard lock(state.mutex);
  // On a device that failed, nothing can be freed.
  if (std::ranges::any_of(state.devices,
                          [](const auto& device) { return device->failed != cudaSuccess; }))
    return {};
  std::string lines;
  for (const auto& device : state.devices) lines += device->memory.leaks();
  lines += state.pinned.leaks();
  const auto add = [&lines](const char* what, std::ptrdiff_t count) {
    if (count != 0) lines += fmt::format("{}: {}\n", what, count);
  };
  add("streams",
      std::ranges::count_if(state.streams, [](const auto& stream) { return !stream->destroyed; }));
  add("events", std::ssize(state.events));
  add("graphs", std::ssize(state.graphs));
  add("executable graphs", std::ssize(state.execs));
  add("cuBLAS handles", std::ssize(state.cublas_handles));
  return lines;
}

std::string reset(const Config& config) {
  std::string lines = leaks();
  Runtime& state = runtime();
  std::lock_guard lock(state.mutex);
  state.configure(config);
  thread_state().device = 0;
  thread_state().last_error = cudaSuccess;
  return lines;
}

Statistics statistics() {
  Runtime& state = runtime();
  std::lock_guard lock(state.mutex);
  Statistics result = state.stats;
  result.switches = fiber_switches();
  for (const auto& device : state.devices) {
    result.memory += device->memory.used();
    result.peak_memory = std::max(result.peak_memory, device->memory.peak());
  }
  result.pinned = state.pinned.bytes();
  return result;
}

std::string last_message() {
  std::lock_guard lock(runtime().mutex);
  return runtime().last_message;
}

}  // namespace cuda_sim

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define CUDA_SIM_NAME(name, value, text) \
  case name:                             \
    return #name;
    CUDA_SIM_ERRORS(CUDA_SIM_NAME)
#undef CUDA_SIM_NAME
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define CUDA_SIM_TEXT(name, value, text) \
  case name:                             \
    return text;
    CUDA_SIM_ERRORS(CUDA_SIM_TEXT)
#undef CUDA_SIM_TEXT
  }
  return "unrecognized error code";
}
