// Devices, errors, launches.
#include <fmt/format.h>

#include <algorithm>

#include "cuda_runtime_api.h"
#include "cuda_sim_launch.h"
#include "runtime.h"
#include "work.h"

using cuda_sim::call;
using cuda_sim::CallKind;
using cuda_sim::Config;
using cuda_sim::Runtime;
using cuda_sim::thread_state;

namespace {

constexpr int kMaxThreadsPerBlock = 1024;
constexpr unsigned kMaxBlock[3] = {1024, 1024, 64};
constexpr unsigned kMaxGrid[3] = {2147483647, 65535, 65535};

// What a multiprocessor has (CUDA C++ Programming Guide, "Technical Specifications per Compute
// Capability"). From 8.0 on the driver takes 1 KiB of a block's shared memory.
struct Multiprocessor {
  std::size_t shared;  // bytes
  std::size_t reserved;
  int threads;
};
Multiprocessor multiprocessor_of(int capability) {
  if (capability < 80) return {.shared = 64 * 1024, .reserved = 0, .threads = 1024};
  if (capability < 86) return {.shared = 164 * 1024, .reserved = 1024, .threads = 2048};
  if (capability >= 90 && capability < 120)
    return {.shared = 228 * 1024, .reserved = 1024, .threads = 2048};
  return {.shared = 100 * 1024, .reserved = 1024, .threads = 1536};
}

cudaDeviceProp properties_of(const Config& config, int device) {
  const Multiprocessor multiprocessor = multiprocessor_of(config.capability);
  cudaDeviceProp p{};
  fmt::format_to_n(p.name, sizeof p.name - 1, "Simulated GPU (sm_{})", config.capability);
  p.uuid.bytes[0] = static_cast<char>(device);
  p.totalGlobalMem = config.memory;
  p.sharedMemPerBlock = config.shared_per_block;
  p.sharedMemPerBlockOptin = multiprocessor.shared - multiprocessor.reserved;
  p.sharedMemPerMultiprocessor = multiprocessor.shared;
  p.reservedSharedMemPerBlock = multiprocessor.reserved;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.memPitch = 2147483647;
  p.maxThreadsPerBlock = kMaxThreadsPerBlock;
  for (int d = 0; d < 3; ++d) {
    p.maxThreadsDim[d] = static_cast<int>(kMaxBlock[d]);
    p.maxGridSize[d] = static_cast<int>(kMaxGrid[d]);
  }
  p.totalConstMem = 65536;
  p.major = config.capability / 10;
  p.minor = config.capability % 10;
  p.multiProcessorCount = config.multiprocessors;
  p.integrated = config.integrated;
  p.canMapHostMemory = 1;
  p.concurrentKernels = 1;
  p.pciBusID = 1 + device;
  p.asyncEngineCount = 2;
  p.unifiedAddressing = 1;
  p.memoryBusWidth = 256;
  p.l2CacheSize = static_cast<int>(config.l2_cache);
  p.maxThreadsPerMultiProcessor = multiprocessor.threads;
  p.maxBlocksPerMultiProcessor = 16;
  p.streamPrioritiesSupported = 1;
  p.canUseHostPointerForRegisteredMem = 1;
  p.cooperativeLaunch = 1;
  p.hostRegisterSupported = 1;
  p.memoryPoolsSupported = 1;
  return p;
}

bool attribute_of(const cudaDeviceProp& p, cudaDeviceAttr attribute, int& value) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      value = p.maxThreadsPerBlock;
      return true;
    case cudaDevAttrMaxBlockDimX:
      value = p.maxThreadsDim[0];
      return true;
    case cudaDevAttrMaxBlockDimY:
      value = p.maxThreadsDim[1];
      return true;
    case cudaDevAttrMaxBlockDimZ:
      value = p.maxThreadsDim[2];
      return true;
    case cudaDevAttrMaxGridDimX:
      value = p.maxGridSize[0];
      return true;
    case cudaDevAttrMaxGridDimY:
      value = p.maxGridSize[1];
      return true;
    case cudaDevAttrMaxGridDimZ:
      value = p.maxGridSize[2];
      return true;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      value = static_cast<int>(p.sharedMemPerBlock);
      return true;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      value = static_cast<int>(p.sharedMemPerBlockOptin);
      return true;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      value = static_cast<int>(p.sharedMemPerMultiprocessor);
      return true;
    case cudaDevAttrWarpSize:
      value = p.warpSize;
      return true;
    case cudaDevAttrClockRate:
      value = 1500000;
      return true;
    case cudaDevAttrMemoryClockRate:
      value = 7000000;
      return true;
    case cudaDevAttrGlobalMemoryBusWidth:
      value = p.memoryBusWidth;
      return true;
    case cudaDevAttrMultiProcessorCount:
      value = p.multiProcessorCount;
      return true;
    case cudaDevAttrKernelExecTimeout:
      value = 0;
      return true;
    case cudaDevAttrIntegrated:
      value = p.integrated;
      return true;
    case cudaDevAttrCanMapHostMemory:
      value = p.canMapHostMemory;
      return true;
    case cudaDevAttrComputeMode:
      value = 0;
      return true;
    case cudaDevAttrConcurrentKernels:
      value = p.concurrentKernels;
      return true;
    case cudaDevAttrEccEnabled:
      value = p.ECCEnabled;
      return true;
    case cudaDevAttrPciBusId:
      value = p.pciBusID;
      return true;
    case cudaDevAttrPciDeviceId:
      value = p.pciDeviceID;
      return true;
    case cudaDevAttrPciDomainId:
      value = p.pciDomainID;
      return true;
    case cudaDevAttrL2CacheSize:
      value = p.l2CacheSize;
      return true;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      value = p.maxThreadsPerMultiProcessor;
      return true;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      value = p.maxBlocksPerMultiProcessor;
      return true;
    case cudaDevAttrAsyncEngineCount:
      value = p.asyncEngineCount;
      return true;
    case cudaDevAttrUnifiedAddressing:
      value = p.unifiedAddressing;
      return true;
    case cudaDevAttrComputeCapabilityMajor:
      value = p.major;
      return true;
    case cudaDevAttrComputeCapabilityMinor:
      value = p.minor;
      return true;
    case cudaDevAttrStreamPrioritiesSupported:
      value = p.streamPrioritiesSupported;
      return true;
    case cudaDevAttrManagedMemory:
      value = p.managedMemory;
      return true;
    case cudaDevAttrPageableMemoryAccess:
      value = p.pageableMemoryAccess;
      return true;
    case cudaDevAttrConcurrentManagedAccess:
      value = p.concurrentManagedAccess;
      return true;
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
      value = p.canUseHostPointerForRegisteredMem;
      return true;
    case cudaDevAttrCooperativeLaunch:
      value = p.cooperativeLaunch;
      return true;
    case cudaDevAttrHostRegisterSupported:
      value = p.hostRegisterSupported;
      return true;
    case cudaDevAttrHostRegisterReadOnlySupported:
      value = p.hostRegisterReadOnlySupported;
      return true;
    case cudaDevAttrMemoryPoolsSupported:
      value = p.memoryPoolsSupported;
      return true;
  }
  return false;
}

bool exceeds(dim3 size, const unsigned (&limit)[3]) {
  return size.x == 0 || size.y == 0 || size.z == 0 || size.x > limit[0] || size.y > limit[1] ||
         size.z > limit[2];
}

// What hardware and driver check before they queue a grid.
cudaError_t check_launch(Runtime& runtime, const char* name, const void* function, dim3 grid,
                         dim3 block, std::size_t shared_bytes) {
  const auto refuse = [&](cudaError_t error, const std::string& why) {
    runtime.say(fmt::format("launch of kernel {}: {}", name, why));
    return error;
  };
  const Config& config = runtime.config;
  if (config.capability < config.lowest_capability)
    return refuse(cudaErrorNoKernelImageForDevice,
                  fmt::format("built for sm_{} and newer, the device is sm_{}",
                              config.lowest_capability, config.capability));
  if (exceeds(grid, kMaxGrid))
    return refuse(cudaErrorInvalidConfiguration,
                  fmt::format("a grid of {} × {} × {} blocks", grid.x, grid.y, grid.z));
  if (exceeds(block, kMaxBlock) ||
      std::uint64_t{block.x} * block.y * block.z > std::uint64_t{kMaxThreadsPerBlock})
    return refuse(cudaErrorInvalidConfiguration,
                  fmt::format("a block of {} × {} × {} threads", block.x, block.y, block.z));
  const auto raised = runtime.shared_limits.find(function);
  const std::size_t limit = std::max(
      config.shared_per_block,
      raised == runtime.shared_limits.end() ? 0 : static_cast<std::size_t>(raised->second));
  if (shared_bytes > limit)
    return refuse(cudaErrorInvalidValue,
                  fmt::format("{} bytes of shared memory, {} are allowed", shared_bytes, limit));
  return cudaSuccess;
}

}  // namespace

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  thread_state().last_error = cudaSuccess;
  return error;
}

cudaError_t cudaPeekAtLastError() {
  Runtime& state = cuda_sim::runtime();
  std::lock_guard lock(state.mutex);
  const auto device = static_cast<std::size_t>(thread_state().device);
  if (device < state.devices.size() && state.devices[device]->sticky != cudaSuccess)
    return state.devices[device]->sticky;
  return thread_state().last_error;
}

cudaError_t cudaGetDeviceCount(int* count) {
  return call("cudaGetDeviceCount", CallKind::kFree, [&](Runtime& runtime) {
    *count = 0;
    if (runtime.config.driver / 1000 < CUDART_VERSION / 1000) return cudaErrorInsufficientDriver;
    if (runtime.config.devices == 0) return cudaErrorNoDevice;
    *count = runtime.config.devices;
    return cudaSuccess;
  });
}

cudaError_t cudaSetDevice(int device) {
  return call("cudaSetDevice", CallKind::kAsync, [&](Runtime& runtime) {
    if (device < 0 || device >= runtime.config.devices) return cudaErrorInvalidDevice;
    thread_state().device = device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDevice(int* device) {
  return call("cudaGetDevice", CallKind::kAsync, [&](Runtime&) {
    *device = thread_state().device;
    return cudaSuccess;
  });
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  return call("cudaGetDeviceProperties", CallKind::kAsync, [&](Runtime& runtime) {
    if (device < 0 || device >= runtime.config.devices) return cudaErrorInvalidDevice;
    *properties = properties_of(runtime.config, device);
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return call("cudaDeviceGetAttribute", CallKind::kAsync, [&](Runtime& runtime) {
    if (device < 0 || device >= runtime.config.devices) return cudaErrorInvalidDevice;
    return attribute_of(properties_of(runtime.config, device), attribute, *value)
               ? cudaSuccess
               : cudaErrorInvalidValue;
  });
}

cudaError_t cudaDriverGetVersion(int* version) {
  return call("cudaDriverGetVersion", CallKind::kFree, [&](Runtime& runtime) {
    *version = runtime.config.driver;
    return cudaSuccess;
  });
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  return call("cudaRuntimeGetVersion", CallKind::kFree, [&](Runtime&) {
    *version = CUDART_VERSION;
    return cudaSuccess;
  });
}

cudaError_t cudaDeviceSynchronize() {
  return call("cudaDeviceSynchronize", CallKind::kSync, [&](Runtime& runtime) {
    if (!runtime.captures.empty()) {
      for (const auto& capture : runtime.captures) capture->invalid = true;
      runtime.say("cudaDeviceSynchronize is called while a stream is captured");
      return cudaErrorStreamCaptureUnsupported;
    }
    wait_for_device(runtime, thread_state().device);
    return cudaSuccess;
  });
}

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  return call("cudaFuncSetAttribute", CallKind::kAsync, [&](Runtime& runtime) {
    if (function == nullptr) return cudaErrorInvalidDeviceFunction;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout) return cudaSuccess;
    const Multiprocessor multiprocessor = multiprocessor_of(runtime.config.capability);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
        static_cast<std::size_t>(value) > multiprocessor.shared - multiprocessor.reserved)
      return cudaErrorInvalidValue;
    runtime.shared_limits[function] = value;
    return cudaSuccess;
  });
}

namespace cuda_sim {

void launch(const char* name, const void* function, dim3 grid, dim3 block, std::size_t shared_bytes,
            cudaStream_t stream, std::function<void()> thread_body,
            std::vector<const void*> pointers) {
  (void)call("launch", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const target = find_stream(runtime, stream, name);
    if (target == nullptr) return cudaErrorInvalidResourceHandle;
    if (target->device != thread_state().device) {
      runtime.say(fmt::format("launch of kernel {}: the stream is of device {}, not of the current",
                              name, target->device));
      return cudaErrorInvalidResourceHandle;
    }
    const cudaError_t error = check_launch(runtime, name, function, grid, block, shared_bytes);
    if (error != cudaSuccess) return error;
    return submit(runtime, *target,
                  {.what = std::string("kernel ") + name,
                   .work = make_kernel_work({name, grid, block, shared_bytes,
                                             std::move(thread_body), std::move(pointers)})});
  });
}

}  // namespace cuda_sim
