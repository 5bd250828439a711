// Devices as configured, what a launch may ask for, and faults that are injected.
#include <gtest/gtest.h>

#include <cstdlib>

#include "sim_test.h"

namespace {

using cuda_sim::launch_kernel;

class Launches : public SimTest {};
class Devices : public SimTest {};
class Faults : public SimTest {};
using DevicesDeathTest = Devices;

__global__ void nothing() {}
__global__ void nothing_either() {}

cudaError_t launched(dim3 grid, dim3 block, std::size_t shared_bytes, void (*kernel)() = nothing) {
  Stream stream;
  launch_kernel("nothing", kernel, grid, block, shared_bytes, stream);
  const cudaError_t error = cudaGetLastError();
  EXPECT_CUDA(cudaStreamSynchronize(stream));
  return error;
}

TEST_F(Launches, AreValidated) {
  EXPECT_CUDA(launched(1, 1024, 0));
  EXPECT_CUDA(launched(1, dim3(4, 4, 64), 0));
  EXPECT_CUDA(launched(dim3(1, 65535, 1), 1, 0));
  EXPECT_CUDA_ERROR(launched(1, 1025, 0), cudaErrorInvalidConfiguration);
  EXPECT_CUDA_ERROR(launched(1, dim3(1, 1, 65), 0), cudaErrorInvalidConfiguration);
  EXPECT_CUDA_ERROR(launched(1, dim3(64, 64, 1), 0), cudaErrorInvalidConfiguration);
  EXPECT_CUDA_ERROR(launched(0, 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_CUDA_ERROR(launched(1, 0, 0), cudaErrorInvalidConfiguration);
  EXPECT_CUDA_ERROR(launched(dim3(1, 65536, 1), 1, 0), cudaErrorInvalidConfiguration);
}

TEST_F(Launches, SharedMemoryIsLimitedByKernel) {
  EXPECT_CUDA(launched(1, 32, 48 * 1024));
  EXPECT_CUDA_ERROR(launched(1, 32, 48 * 1024 + 1), cudaErrorInvalidValue);
  EXPECT_CUDA_ERROR(
      cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024),
      cudaErrorInvalidValue);
  EXPECT_CUDA(
      cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 99 * 1024));
  (void)cudaGetLastError();
  EXPECT_CUDA(launched(1, 32, 99 * 1024));
  EXPECT_CUDA_ERROR(launched(1, 32, 99 * 1024, nothing_either), cudaErrorInvalidValue);
}

// CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
TEST_F(Launches, SharedMemoryOfABlockFollowsFromTheCapability) {
  constexpr int kKiB = 1024;
  const std::pair<int, int> allowed[] = {{75, 64}, {80, 163}, {86, 99},
                                         {89, 99}, {90, 227}, {120, 99}};
  for (const auto& [capability, kib] : allowed) {
    SCOPED_TRACE(capability);
    cuda_sim::reset({.capability = capability});
    int value = 0;
    EXPECT_CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    EXPECT_EQ(value, kib * kKiB);
    EXPECT_CUDA_ERROR(
        cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, kib * kKiB + 1),
        cudaErrorInvalidValue);
    (void)cudaGetLastError();
    EXPECT_CUDA(
        cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, kib * kKiB));
    EXPECT_CUDA(launched(1, 32, static_cast<std::size_t>(kib * kKiB)));
  }
}

TEST_F(Devices, AreWhatTheConfigurationSays) {
  cuda_sim::reset({.memory = 5 << 20, .devices = 2, .driver = 13010, .capability = 90});
  int value = 0;
  EXPECT_CUDA(cudaGetDeviceCount(&value));
  EXPECT_EQ(value, 2);
  EXPECT_CUDA(cudaDriverGetVersion(&value));
  EXPECT_EQ(value, 13010);
  cudaDeviceProp properties{};
  EXPECT_CUDA(cudaGetDeviceProperties(&properties, 1));
  EXPECT_EQ(properties.major, 9);
  EXPECT_EQ(properties.totalGlobalMem, 5u << 20);
  EXPECT_CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
  EXPECT_EQ(value, 9);
  EXPECT_CUDA_ERROR(cudaSetDevice(2), cudaErrorInvalidDevice);
  EXPECT_CUDA(cudaSetDevice(1));
  Stream stream;
  DeviceArray<int> x(4);
  EXPECT_CUDA(cudaSetDevice(0));
  launch_kernel("nothing", nothing, 1, 1, 0, stream);
  (void)cudaGetLastError();
  EXPECT_TRUE(message_has("stream is of device 1"));
  EXPECT_CUDA(cudaGetLastError());
}

TEST_F(Devices, MayBeMissingOldOrBehindAnOldDriver) {
  int count = -1;
  void* memory = nullptr;
  cuda_sim::reset({.devices = 0});
  EXPECT_CUDA_ERROR(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  EXPECT_EQ(count, 0);
  EXPECT_CUDA_ERROR(cudaMalloc(&memory, 4), cudaErrorNoDevice);
  cuda_sim::reset({.driver = 11080});
  EXPECT_CUDA_ERROR(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_CUDA_ERROR(cudaMalloc(&memory, 4), cudaErrorInsufficientDriver);
  cuda_sim::reset({.capability = 61});
  EXPECT_CUDA_ERROR(launched(1, 32, 0), cudaErrorNoKernelImageForDevice);
}

TEST_F(Devices, AreReadFromTheEnvironment) {
  setenv("STAGECOACH_CUDA_SIM_MEMORY", "512MiB", 1);
  setenv("STAGECOACH_CUDA_SIM_SEED", "77", 1);
  const cuda_sim::Config config = cuda_sim::config_from_environment();
  EXPECT_EQ(config.memory, std::size_t{512} << 20);
  EXPECT_EQ(config.seed, 77u);
  unsetenv("STAGECOACH_CUDA_SIM_MEMORY");
  unsetenv("STAGECOACH_CUDA_SIM_SEED");
}

TEST_F(DevicesDeathTest, NonsenseInTheEnvironmentEndsTheProcess) {
  setenv("STAGECOACH_CUDA_SIM_MEMORY", "512Mib", 1);
  EXPECT_DEATH(cuda_sim::config_from_environment(), "512Mib is no number of bytes");
  unsetenv("STAGECOACH_CUDA_SIM_MEMORY");
  EXPECT_DEATH(cuda_sim::reset({.faults = "cudaMalloc:x:cudaErrorUnknown"}), "not of the form");
  EXPECT_DEATH(cuda_sim::reset({.faults = "cudaMalloc:1:cudaErrorNone"}), "not of the form");
  EXPECT_DEATH(cuda_sim::reset({.faults = "cudaMaloc:1:cudaErrorUnknown"}), "names no function");
  EXPECT_DEATH(cuda_sim::reset({.faults = "cudaMalloc:1:CUBLAS_STATUS_ALLOC_FAILED"}),
               "only functions of cuBLAS");
}

TEST_F(Faults, HitTheCallThatTheyName) {
  cuda_sim::reset({.faults = "cudaMalloc:2:cudaErrorMemoryAllocation"});
  void* memory[3] = {};
  EXPECT_CUDA(cudaMalloc(&memory[0], 4));
  EXPECT_CUDA_ERROR(cudaMalloc(&memory[1], 4), cudaErrorMemoryAllocation);
  EXPECT_CUDA(cudaMalloc(&memory[2], 4));
  EXPECT_CUDA(cudaFree(memory[0]));
  EXPECT_CUDA(cudaFree(memory[2]));
  (void)cudaGetLastError();
}

TEST_F(Faults, HitFunctionsThatShareTheirWork) {
  cuda_sim::reset({.faults = "cudaMallocHost:1:cudaErrorMemoryAllocation,"
                             "cudaStreamCreateWithFlags:1:cudaErrorMemoryAllocation"});
  void* memory = nullptr;
  cudaStream_t stream = nullptr;
  EXPECT_CUDA_ERROR(cudaMallocHost(&memory, 4), cudaErrorMemoryAllocation);
  EXPECT_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
                    cudaErrorMemoryAllocation);
  (void)cudaGetLastError();
}

TEST_F(Faults, OfLaunchesShowWhenTheProgramWaits) {
  cuda_sim::reset({.faults = "launch:2:cudaErrorLaunchFailure"});
  Stream stream;
  for (int i = 0; i < 2; ++i) {
    launch_kernel("nothing", nothing, 1, 1, 0, stream);
    EXPECT_CUDA(cudaGetLastError());
  }
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorLaunchFailure);
  EXPECT_LE(cuda_sim::statistics().launches["nothing"], 1u);
  cuda_sim::reset({});
}

TEST_F(Faults, OfLaunchesMayShowAtAnyCall) {
  int shown = 0;
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    cuda_sim::reset({.seed = seed, .faults = "launch:1:cudaErrorLaunchFailure"});
    Stream stream;
    launch_kernel("nothing", nothing, 1, 1, 0, stream);
    EXPECT_CUDA(cudaGetLastError());
    void* pointer = nullptr;
    const cudaError_t error = cudaMalloc(&pointer, 4);
    if (error == cudaSuccess) continue;
    ++shown;
    EXPECT_CUDA_ERROR(error, cudaErrorLaunchFailure);
    EXPECT_CUDA_ERROR(cudaMalloc(&pointer, 4), cudaErrorLaunchFailure);  // from then on always
  }
  EXPECT_GT(shown, 0);
  EXPECT_LT(shown, 50);
  cuda_sim::reset({});
}

TEST_F(Faults, OfTheConfigurationShowAtOnceAndPass) {
  cuda_sim::reset({.faults = "launch:1:cudaErrorInvalidConfiguration"});
  EXPECT_CUDA_ERROR(launched(1, 1, 0), cudaErrorInvalidConfiguration);
  EXPECT_CUDA(launched(1, 1, 0));
}

TEST_F(Faults, LoseTheDeviceForGood) {
  cuda_sim::reset({.faults = "any:3:cudaErrorDevicesUnavailable"});
  int device = 0;
  EXPECT_CUDA(cudaGetDevice(&device));
  EXPECT_CUDA(cudaGetDevice(&device));
  EXPECT_CUDA_ERROR(cudaGetDevice(&device), cudaErrorDevicesUnavailable);
  EXPECT_CUDA_ERROR(cudaDeviceSynchronize(), cudaErrorDevicesUnavailable);
  void* memory = nullptr;
  EXPECT_CUDA_ERROR(cudaMalloc(&memory, 4), cudaErrorDevicesUnavailable);
  cuda_sim::reset({});
}

}  // namespace
