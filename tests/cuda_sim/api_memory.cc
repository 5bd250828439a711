// Memory and copies.
#include <fmt/format.h>

#include <cstring>

#include "cuda_runtime_api.h"
#include "runtime.h"
#include "work.h"

using namespace cuda_sim;

namespace {

enum class Place { kDevice, kPinned, kPageable, kWrong };

// Where memory lies; wrong: partly outside of a live allocation.
Place place_of(Runtime& runtime, const void* data, std::size_t bytes) {
  if (const DeviceMemory* memory = runtime.memory_of(data))
    return memory->contains(data, bytes) ? Place::kDevice : Place::kWrong;
  return runtime.pinned.contains(data, bytes) ? Place::kPinned : Place::kPageable;
}

// Pageable memory, copied now, as if the driver had staged it.
void stage(Copy& copy) {
  auto bytes = std::make_shared<std::vector<std::byte>>(copy.source, copy.source + copy.bytes);
  copy.source = bytes->data();
  copy.staged = std::move(bytes);
}

struct Places {
  Place target, source;
};

cudaError_t check(Runtime& runtime, Copy& copy, Places& places) {
  places.target = place_of(runtime, copy.target, copy.bytes);
  places.source = place_of(runtime, copy.source, copy.bytes);
  for (const bool target : {true, false}) {
    if ((target ? places.target : places.source) != Place::kWrong) continue;
    const void* const data = target ? copy.target : copy.source;
    runtime.say(fmt::format("{}: {} bytes at its {} are not all in one allocation; {}", copy.what,
                            copy.bytes, target ? "target" : "source",
                            runtime.memory_of(data)->describe(data)));
    return cudaErrorInvalidValue;
  }
  const bool to = places.target == Place::kDevice;
  const bool from = places.source == Place::kDevice;
  const cudaMemcpyKind kind = to ? (from ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice)
                                 : (from ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost);
  if (copy.kind != cudaMemcpyDefault && copy.kind != kind) {
    runtime.say(fmt::format("{}: kind {} does not agree with the addresses, which are of kind {}",
                            copy.what, static_cast<int>(copy.kind), static_cast<int>(kind)));
    return cudaErrorInvalidValue;
  }
  copy.kind = kind;
  copy.target_pinned = places.target == Place::kPinned;
  copy.source_pinned = places.source == Place::kPinned;
  return cudaSuccess;
}

cudaError_t copy_async(Runtime& runtime, Copy copy, cudaStream_t stream) {
  CUstream_st* const target = find_stream(runtime, stream, copy.what.c_str());
  if (target == nullptr) return cudaErrorInvalidResourceHandle;
  if (copy.bytes == 0) return cudaSuccess;
  Places places{};
  const cudaError_t error = check(runtime, copy, places);
  if (error != cudaSuccess) return error;
  const bool blocks = places.target == Place::kPageable;
  if (target->capture != nullptr && (blocks || places.source == Place::kPageable)) {
    target->capture->invalid = true;
    runtime.say(fmt::format("{} of pageable memory while the stream is captured", copy.what));
    return cudaErrorStreamCaptureUnsupported;
  }
  // When a driver reads pageable memory is its own affair: at the call, or as late as the copy
  // runs.
  if (places.source == Place::kPageable && !blocks && runtime.random.chance(1, 2)) stage(copy);
  Operation operation{.what = copy.what};
  operation.work = make_copy_work(std::move(copy));
  const CompletionPtr completion = operation.completion;
  const cudaError_t queued = submit(runtime, *target, std::move(operation));
  if (queued == cudaSuccess && blocks) {
    wait_for(runtime, completion);
    Device& device = runtime.device(target->device);
    if (device.failed != cudaSuccess) return device.sticky = device.failed;
  }
  return queued;
}

}  // namespace

cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes) {
  return call("cudaMemGetInfo", CallKind::kAsync, [&](Runtime& runtime) {
    const DeviceMemory& memory = runtime.current().memory;
    *free_bytes = memory.limit() - memory.used();
    *total_bytes = memory.limit();
    return cudaSuccess;
  });
}

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  return call("cudaMalloc", CallKind::kUnsafe, [&](Runtime& runtime) {
    if (pointer == nullptr) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    *pointer = runtime.current().memory.allocate(bytes);
    return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

cudaError_t cudaFree(void* pointer) {
  return call("cudaFree", CallKind::kSync, [&](Runtime& runtime) {
    if (pointer == nullptr) return cudaSuccess;
    DeviceMemory* const memory = runtime.memory_of(pointer);
    for (int number = 0; memory != nullptr && number < runtime.config.devices; ++number)
      if (&runtime.device(number).memory == memory) wait_for_device(runtime, number);
    switch (memory == nullptr ? DeviceMemory::Freed::kUnknown : memory->free(pointer)) {
      case DeviceMemory::Freed::kFreed:
        return cudaSuccess;
      case DeviceMemory::Freed::kUnknown:
        runtime.say(
            fmt::format("cudaFree({}): {}", pointer,
                        memory == nullptr ? "not device memory" : memory->describe(pointer)));
        return cudaErrorInvalidValue;
      case DeviceMemory::Freed::kOverwritten:
        runtime.fail(
            thread_state().device, cudaErrorIllegalAddress,
            fmt::format("cudaFree({}): bytes around the allocation were overwritten", pointer));
    }
    return cudaSuccess;
  });
}

namespace {

cudaError_t allocate_pinned(const char* function, void** pointer, std::size_t bytes,
                            unsigned flags) {
  return call(function, CallKind::kUnsafe, [&](Runtime& runtime) {
    constexpr unsigned kFlags =
        cudaHostAllocPortable | cudaHostAllocMapped | cudaHostAllocWriteCombined;
    if (pointer == nullptr || (flags & ~kFlags) != 0) return cudaErrorInvalidValue;
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    *pointer = runtime.pinned.allocate(bytes);
    return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
  });
}

}  // namespace

cudaError_t cudaHostAlloc(void** pointer, std::size_t bytes, unsigned flags) {
  return allocate_pinned("cudaHostAlloc", pointer, bytes, flags);
}

cudaError_t cudaMallocHost(void** pointer, std::size_t bytes) {
  return allocate_pinned("cudaMallocHost", pointer, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void* pointer) {
  return call("cudaFreeHost", CallKind::kUnsafe, [&](Runtime& runtime) {
    if (pointer == nullptr) return cudaSuccess;
    switch (runtime.pinned.free(pointer)) {
      case DeviceMemory::Freed::kFreed:
        return cudaSuccess;
      case DeviceMemory::Freed::kUnknown:
        runtime.say(fmt::format("cudaFreeHost({}): not allocated by cudaHostAlloc", pointer));
        return cudaErrorInvalidValue;
      case DeviceMemory::Freed::kOverwritten:
        runtime.fail(
            thread_state().device, cudaErrorIllegalAddress,
            fmt::format("cudaFreeHost({}): bytes behind the end were overwritten", pointer));
    }
    return cudaSuccess;
  });
}

cudaError_t cudaHostRegister(void* pointer, std::size_t bytes, unsigned flags) {
  return call("cudaHostRegister", CallKind::kUnsafe, [&](Runtime& runtime) {
    constexpr unsigned kFlags = cudaHostRegisterPortable | cudaHostRegisterMapped;
    if (pointer == nullptr || bytes == 0 || runtime.memory_of(pointer) != nullptr)
      return cudaErrorInvalidValue;
    if ((flags & (cudaHostRegisterReadOnly | cudaHostRegisterIoMemory)) != 0)
      return cudaErrorNotSupported;
    if ((flags & ~kFlags) != 0) return cudaErrorInvalidValue;
    return runtime.pinned.add(pointer, bytes) == PinnedMemory::Registered::kDone
               ? cudaSuccess
               : cudaErrorHostMemoryAlreadyRegistered;
  });
}

cudaError_t cudaHostUnregister(void* pointer) {
  return call("cudaHostUnregister", CallKind::kUnsafe, [&](Runtime& runtime) {
    return runtime.pinned.remove(pointer) == PinnedMemory::Registered::kDone
               ? cudaSuccess
               : cudaErrorHostMemoryNotRegistered;
  });
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned flags) {
  return call("cudaHostGetDevicePointer", CallKind::kAsync, [&](Runtime& runtime) {
    if (device == nullptr || flags != 0 || !runtime.pinned.contains(host, 1))
      return cudaErrorInvalidValue;
    *device = host;
    return cudaSuccess;
  });
}

cudaError_t cudaMemset(void* pointer, int value, std::size_t bytes) {
  return call("cudaMemset", CallKind::kUnsafe, [&](Runtime& runtime) {
    if (bytes == 0) return cudaSuccess;
    if (place_of(runtime, pointer, bytes) != Place::kDevice) return cudaErrorInvalidValue;
    return submit(runtime, runtime.current().legacy,
                  {.what = "cudaMemset", .work = make_fill_work(pointer, value, bytes)});
  });
}

cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes, cudaStream_t stream) {
  return call("cudaMemsetAsync", CallKind::kAsync, [&](Runtime& runtime) {
    CUstream_st* const target = find_stream(runtime, stream, "cudaMemsetAsync");
    if (target == nullptr) return cudaErrorInvalidResourceHandle;
    if (bytes == 0) return cudaSuccess;
    if (place_of(runtime, pointer, bytes) != Place::kDevice) return cudaErrorInvalidValue;
    return submit(runtime, *target,
                  {.what = "cudaMemsetAsync", .work = make_fill_work(pointer, value, bytes)});
  });
}

// Ordered after cudaMemset, and after nothing of the program's streams, which are non-blocking.
cudaError_t cudaMemcpy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind) {
  return call("cudaMemcpy", CallKind::kSync, [&](Runtime& runtime) {
    if (bytes == 0) return cudaSuccess;
    Copy copy{.target = static_cast<std::byte*>(target),
              .source = static_cast<const std::byte*>(source),
              .bytes = bytes,
              .kind = kind,
              .what = "cudaMemcpy"};
    Places places{};
    const cudaError_t error = check(runtime, copy, places);
    if (error != cudaSuccess) return error;
    CUstream_st& legacy = runtime.current().legacy;
    const cudaError_t queued =
        submit(runtime, legacy, {.what = "cudaMemcpy", .work = make_copy_work(std::move(copy))});
    if (queued == cudaSuccess) wait_for_stream(runtime, legacy);
    return queued;
  });
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
  return call("cudaMemcpyAsync", CallKind::kAsync, [&](Runtime& runtime) {
    return copy_async(runtime,
                      {.target = static_cast<std::byte*>(target),
                       .source = static_cast<const std::byte*>(source),
                       .bytes = bytes,
                       .kind = kind,
                       .what = "cudaMemcpyAsync"},
                      stream);
  });
}
