// CUDA's handles, owned.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <memory>
#include <utility>

#include "backend/backend.h"
#include "backend/cuda/cuda_error.h"
#include "base/clock.h"

namespace stagecoach::cuda {

class Stream {
 public:
  Stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// An event that was made, recorded or not.
class OwnedEvent {
 public:
  explicit OwnedEvent(unsigned flags) {
    check(cudaEventCreateWithFlags(&event_, flags), "creating an event");
  }
  ~OwnedEvent() { cudaEventDestroy(event_); }
  OwnedEvent(const OwnedEvent&) = delete;
  OwnedEvent& operator=(const OwnedEvent&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// An event whose time by the host's clock is known: what turns others into times. Milliseconds
// between events are floats, and clocks drift: an origin serves for some seconds.
class ClockOrigin {
 public:
  // Spins: waking up would be part of the time.
  explicit ClockOrigin(cudaStream_t stream) {
    check(cudaEventRecord(event_, stream), "recording an event");
    check(cudaEventSynchronize(event_), "waiting for the device");
    ns_ = now_ns();
  }
  ClockOrigin(const ClockOrigin&) = delete;
  ClockOrigin& operator=(const ClockOrigin&) = delete;

  std::int64_t ns() const { return ns_; }
  cudaEvent_t event() const { return event_; }

 private:
  const OwnedEvent event_{cudaEventDefault};
  std::int64_t ns_ = 0;
};
using ClockOriginPtr = std::shared_ptr<const ClockOrigin>;

class CudaEvent final : public Event {
 public:
  // Recorded on `stream`. Without an origin it has no time. cudaEventRecordExternal: by a graph
  // that the stream is captured into, whenever it runs.
  CudaEvent(ClockOriginPtr origin, cudaStream_t stream, unsigned flags = cudaEventRecordDefault)
      : origin_(std::move(origin)) {
    check(cudaEventRecordWithFlags(event_, stream, flags), "recording an event");
  }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void synchronize() override { check(cudaEventSynchronize(event_), "waiting for the device"); }
  std::int64_t passed_ns() override {
    synchronize();
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, origin_->event(), event_), "timing");
    return origin_->ns() + static_cast<std::int64_t>(static_cast<double>(milliseconds) * 1e6);
  }
  cudaEvent_t handle() const { return event_; }
  void set_origin(ClockOriginPtr origin) { origin_ = std::move(origin); }

 private:
  ClockOriginPtr origin_;
  const OwnedEvent event_{cudaEventBlockingSync};
};

// Orders streams, or a thread behind one, as often as it is recorded. Nothing waits for one that
// never was.
class Order {
 public:
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "recording an event"); }
  void hold(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_, 0), "ordering streams");
  }
  // The calling thread, asleep. Of several who record at once each waits for the last record.
  void synchronize() const { check(cudaEventSynchronize(event_), "waiting for the device"); }

 private:
  const OwnedEvent event_{cudaEventBlockingSync | cudaEventDisableTiming};
};

// Device memory that grows when more is wanted; what was in it is then gone.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { cudaFree(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // Waits for the device when it has to grow: something may still read the old memory.
  void* get(std::int64_t bytes) {
    if (bytes <= bytes_) return data_;
    check(cudaFree(std::exchange(data_, nullptr)), "freeing scratch memory");
    bytes_ = 0;
    check(cudaMalloc(&data_, static_cast<std::size_t>(bytes)), "allocating scratch memory");
    bytes_ = bytes;
    return data_;
  }
  const void* data() const { return data_; }
  template <typename T>
  T* of(std::int64_t count) {
    return static_cast<T*>(get(count * static_cast<std::int64_t>(sizeof(T))));
  }

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

}  // namespace stagecoach::cuda
