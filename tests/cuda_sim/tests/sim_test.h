// RAII over the simulated runtime, and a fixture that starts from fresh devices and checks for
// leaks.
#pragma once

#include <cuda_runtime.h>
#include <cuda_sim.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#define ASSERT_CUDA(call) ASSERT_STREQ(cudaGetErrorName(call), "cudaSuccess")
#define EXPECT_CUDA(call) EXPECT_STREQ(cudaGetErrorName(call), "cudaSuccess")
#define EXPECT_CUDA_ERROR(call, error) EXPECT_STREQ(cudaGetErrorName(call), #error)

class SimTest : public ::testing::Test {
 protected:
  SimTest() { cuda_sim::reset({}); }
  ~SimTest() override { EXPECT_EQ(cuda_sim::reset({}), ""); }
};

class Stream {
 public:
  Stream() { EXPECT_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~Stream() { (void)cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  explicit Event(unsigned flags = cudaEventDisableTiming) {
    EXPECT_CUDA(cudaEventCreateWithFlags(&event_, flags));
  }
  ~Event() { (void)cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t count) : count_(count) {
    EXPECT_CUDA(cudaMalloc(&data_, count * sizeof(T)));
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    EXPECT_CUDA(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~DeviceArray() { (void)cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;

  T* get() const { return data_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  std::vector<T> read(cudaStream_t stream) const {
    std::vector<T> values(count_);
    EXPECT_CUDA(cudaMemcpyAsync(values.data(), data_, bytes(), cudaMemcpyDeviceToHost, stream));
    return values;
  }

 private:
  std::size_t count_;
  T* data_ = nullptr;
};

template <class T>
class PinnedArray {
 public:
  explicit PinnedArray(std::size_t count) : count_(count) {
    EXPECT_CUDA(cudaMallocHost(&data_, count * sizeof(T)));
  }
  ~PinnedArray() { (void)cudaFreeHost(data_); }
  PinnedArray(const PinnedArray&) = delete;

  T* get() const { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }
  std::size_t bytes() const { return count_ * sizeof(T); }

 private:
  std::size_t count_;
  T* data_ = nullptr;
};

inline bool message_has(const std::string& text) {
  const bool has = cuda_sim::last_message().find(text) != std::string::npos;
  if (!has) ADD_FAILURE() << "last message: " << cuda_sim::last_message();
  return has;
}
