#include "runtime.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "cuda_runtime_api.h"
#include "fault_handler.h"
#include "fibers.h"

namespace cuda_sim {

Runtime& runtime() {
  static auto* const instance = new Runtime;  // never destroyed: kernels' threads may outlive main
  return *instance;
}

ThreadState& thread_state() {
  thread_local ThreadState state;
  return state;
}

bool is_sticky(cudaError_t error) {
  switch (error) {
    case cudaErrorDevicesUnavailable:
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

void Runtime::configure(const Config& to) {
  // Streams point to nothing of the others, so the order does not matter.
  captures.clear();
  execs.clear();
  graphs.clear();
  events.clear();
  streams.clear();
  devices.clear();
  pinned.clear();
  shared_limits.clear();
  last_message.clear();
  cublas_handles.clear();
  config = to;
  random = Random(config.seed);
  mood_left = 0;
  stats = {};
  const std::string wrong = faults.parse(config.faults);
  if (!wrong.empty()) {
    fmt::print(stderr, "cuda_sim: {}\n", wrong);
    std::abort();
  }
  for (int number = 0; number < config.devices; ++number)
    devices.push_back(std::make_unique<Device>(number, config));
  install_fault_handler();
  configured = true;
}

Device& Runtime::current() {
  return device(thread_state().device);
}

DeviceMemory* Runtime::memory_of(const void* address) {
  for (const auto& each : devices)
    if (each->memory.in_range(address)) return &each->memory;
  return nullptr;
}

void Runtime::say(const std::string& line) {
  last_message = line;
  fmt::print(stderr, "cuda_sim: {}\n", line);
}

void Runtime::fail(int number, cudaError_t error, const std::string& line) {
  say(line);
  Device& lost = device(number);
  if (lost.failed == cudaSuccess) lost.failed = error;
}

void Runtime::close_memory() {
  for (const auto& each : devices) each->memory.close(random);
}

namespace {

bool queues(std::string_view function) {
  return function == "launch" || function == "cudaGraphLaunch" || function == "cudaMemcpyAsync" ||
         function == "cudaMemsetAsync";
}

}  // namespace

cudaError_t begin_call(const char* function, CallKind kind) {
  Runtime& state = runtime();
  if (!state.configured) state.configure(config_from_environment());
  if (state.stats.calls[function]++ == 0 && !FaultList::is_counted(function)) {
    fmt::print(stderr, "cuda_sim: {} is missing in the list of functions (config.cc)\n", function);
    std::abort();
  }
  const int injected = state.faults.next(function);
  if (kind == CallKind::kFree && injected == 0) return cudaSuccess;
  if (state.config.driver / 1000 < CUDART_VERSION / 1000) return cudaErrorInsufficientDriver;
  if (state.devices.empty()) return cudaErrorNoDevice;
  if (thread_state().device >= state.config.devices) thread_state().device = 0;
  Device& device = state.current();
  if (device.sticky != cudaSuccess) return device.sticky;
  // Almost any call may return what an op did.
  if (device.failed != cudaSuccess && state.random.chance(1, 4))
    return device.sticky = device.failed;
  if (injected < 0) state.injected_status = -injected;
  if (injected > 0) {
    const auto error = static_cast<cudaError_t>(injected);
    // What breaks while an op runs shows later; a device that is gone shows at once.
    if (queues(function) && is_sticky(error) && error != cudaErrorDevicesUnavailable) {
      state.injected_later = error;
      return cudaSuccess;
    }
    state.say(fmt::format("{} fails with {}, as injected", function, cudaGetErrorName(error)));
    if (is_sticky(error)) device.failed = device.sticky = error;
    return error;
  }
  if (kind == CallKind::kUnsafe || kind == CallKind::kSync) {
    bool refused = false;
    for (const CapturePtr& capture : state.captures) {
      if (capture->mode == cudaStreamCaptureModeRelaxed ||
          (capture->mode == cudaStreamCaptureModeThreadLocal &&
           capture->thread != thread_state().id))
        continue;
      capture->invalid = refused = true;
    }
    if (refused) {
      state.say(fmt::format("{} is called while this thread captures a stream", function));
      return cudaErrorStreamCaptureUnsupported;
    }
  }
  run_by_chance(state);
  return cudaSuccess;
}

void end_call(CallKind kind, cudaError_t& result) {
  Runtime& state = runtime();
  if (kind != CallKind::kFree && !state.devices.empty()) {
    if (kind == CallKind::kSync && result == cudaSuccess) {
      Device& device = state.current();
      // What happened on a device shows here, and from here on everywhere.
      if (device.failed != cudaSuccess) result = device.sticky = device.failed;
    }
    run_by_chance(state);
    state.close_memory();
    // A zombie has no handle; it goes when its work is done.
    std::erase_if(state.streams,
                  [](const auto& stream) { return stream->destroyed && stream->queue.empty(); });
  }
  state.injected_later = cudaSuccess;
  state.injected_status = 0;
  if (result != cudaSuccess) thread_state().last_error = result;
}

}  // namespace cuda_sim
