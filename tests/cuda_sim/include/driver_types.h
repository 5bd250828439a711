// Types of the simulated CUDA runtime: names, layouts of handles and enumerator values are CUDA
// 13's, so that sources compile unchanged and a number in a log means the same. Only what
// Stagecoach uses.
#pragma once

#include <cstddef>

// name, value, text
#define CUDA_SIM_ERRORS(X)                                                                 \
  X(cudaSuccess, 0, "no error")                                                            \
  X(cudaErrorInvalidValue, 1, "invalid argument")                                          \
  X(cudaErrorMemoryAllocation, 2, "out of memory")                                         \
  X(cudaErrorInitializationError, 3, "initialization error")                               \
  X(cudaErrorCudartUnloading, 4, "driver shutting down")                                   \
  X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                    \
  X(cudaErrorInvalidPitchValue, 12, "invalid pitch argument")                              \
  X(cudaErrorInvalidHostPointer, 16, "invalid host pointer")                               \
  X(cudaErrorInvalidDevicePointer, 17, "invalid device pointer")                           \
  X(cudaErrorInvalidMemcpyDirection, 21, "invalid copy direction for memcpy")              \
  X(cudaErrorInsufficientDriver, 35, "driver version is insufficient for runtime version") \
  X(cudaErrorDevicesUnavailable, 46, "device(s) are busy or unavailable")                  \
  X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                         \
  X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                          \
  X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                 \
  X(cudaErrorDeviceUninitialized, 201, "invalid device context")                           \
  X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for this device")  \
  X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error")                             \
  X(cudaErrorOperatingSystem, 304, "operating system call failed")                         \
  X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                        \
  X(cudaErrorIllegalState, 401, "an object is in an illegal state")                        \
  X(cudaErrorNotReady, 600, "device not ready")                                            \
  X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")              \
  X(cudaErrorLaunchOutOfResources, 701, "too many resources requested for launch")         \
  X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")                \
  X(cudaErrorContextIsDestroyed, 709, "context is destroyed")                              \
  X(cudaErrorAssert, 710, "device-side assert triggered")                                  \
  X(cudaErrorHostMemoryAlreadyRegistered, 712, "host memory is already registered")        \
  X(cudaErrorHostMemoryNotRegistered, 713, "host memory is not registered")                \
  X(cudaErrorHardwareStackError, 714, "hardware stack error")                              \
  X(cudaErrorIllegalInstruction, 715, "an illegal instruction was encountered")            \
  X(cudaErrorMisalignedAddress, 716, "misaligned address")                                 \
  X(cudaErrorInvalidAddressSpace, 717, "operation not supported on this address space")    \
  X(cudaErrorInvalidPc, 718, "invalid program counter")                                    \
  X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                             \
  X(cudaErrorNotPermitted, 800, "operation not permitted")                                 \
  X(cudaErrorNotSupported, 801, "operation not supported")                                 \
  X(cudaErrorSystemNotReady, 802, "system not yet initialized")                            \
  X(cudaErrorSystemDriverMismatch, 803, "display driver and driver library do not match")  \
  X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted while capturing")     \
  X(cudaErrorStreamCaptureInvalidated, 901, "an earlier error invalidated the capture")    \
  X(cudaErrorStreamCaptureMerge, 902, "operation would merge two captures")                \
  X(cudaErrorStreamCaptureUnmatched, 903, "capture was not begun in this stream")          \
  X(cudaErrorStreamCaptureUnjoined, 904, "capture has streams that were not joined")       \
  X(cudaErrorStreamCaptureIsolation, 905, "dependency crosses the border of the capture")  \
  X(cudaErrorStreamCaptureImplicit, 906, "operation implies the legacy default stream")    \
  X(cudaErrorCapturedEvent, 907, "event was last recorded in a capturing stream")          \
  X(cudaErrorStreamCaptureWrongThread, 908, "capture was begun by another thread")         \
  X(cudaErrorTimeout, 909, "wait operation timed out")                                     \
  X(cudaErrorExternalDevice, 911, "error of a device outside of CUDA")                     \
  X(cudaErrorUnknown, 999, "unknown error")

enum cudaError {
#define CUDA_SIM_ENUMERATOR(name, value, text) name = value,
  CUDA_SIM_ERRORS(CUDA_SIM_ENUMERATOR)
#undef CUDA_SIM_ENUMERATOR
};
using cudaError_t = cudaError;

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;
using cudaGraphNode_t = struct CUgraphNode_st*;

enum cudaMemcpyKind {
  cudaMemcpyHostToHost = 0,
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
  cudaMemcpyDefault = 4
};

enum cudaStreamCaptureStatus {
  cudaStreamCaptureStatusNone = 0,
  cudaStreamCaptureStatusActive = 1,
  cudaStreamCaptureStatusInvalidated = 2
};

enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal = 0,
  cudaStreamCaptureModeThreadLocal = 1,
  cudaStreamCaptureModeRelaxed = 2
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9
};

#define cudaHostAllocDefault 0x00
#define cudaHostAllocPortable 0x01
#define cudaHostAllocMapped 0x02
#define cudaHostAllocWriteCombined 0x04
#define cudaHostRegisterDefault 0x00
#define cudaHostRegisterPortable 0x01
#define cudaHostRegisterMapped 0x02
#define cudaHostRegisterIoMemory 0x04
#define cudaHostRegisterReadOnly 0x08
#define cudaStreamDefault 0x00
#define cudaStreamNonBlocking 0x01
#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(0x1))
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(0x2))
#define cudaEventDefault 0x00
#define cudaEventBlockingSync 0x01
#define cudaEventDisableTiming 0x02
#define cudaEventInterprocess 0x04
#define cudaEventWaitDefault 0x00
#define cudaEventRecordDefault 0x00
#define cudaEventRecordExternal 0x01

enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxBlockDimX = 2,
  cudaDevAttrMaxBlockDimY = 3,
  cudaDevAttrMaxBlockDimZ = 4,
  cudaDevAttrMaxGridDimX = 5,
  cudaDevAttrMaxGridDimY = 6,
  cudaDevAttrMaxGridDimZ = 7,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrClockRate = 13,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrKernelExecTimeout = 17,
  cudaDevAttrIntegrated = 18,
  cudaDevAttrCanMapHostMemory = 19,
  cudaDevAttrComputeMode = 20,
  cudaDevAttrConcurrentKernels = 31,
  cudaDevAttrEccEnabled = 32,
  cudaDevAttrPciBusId = 33,
  cudaDevAttrPciDeviceId = 34,
  cudaDevAttrMemoryClockRate = 36,
  cudaDevAttrGlobalMemoryBusWidth = 37,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrAsyncEngineCount = 40,
  cudaDevAttrUnifiedAddressing = 41,
  cudaDevAttrPciDomainId = 50,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrStreamPrioritiesSupported = 78,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrManagedMemory = 83,
  cudaDevAttrPageableMemoryAccess = 88,
  cudaDevAttrConcurrentManagedAccess = 89,
  cudaDevAttrCanUseHostPointerForRegisteredMem = 91,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrHostRegisterSupported = 99,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrHostRegisterReadOnlySupported = 113,
  cudaDevAttrMemoryPoolsSupported = 115
};

struct cudaUUID_t {
  char bytes[16];
};

// The fields of CUDA 13 that a program may want; clock rates left it with CUDA 13.
struct cudaDeviceProp {
  char name[256];
  cudaUUID_t uuid;
  std::size_t totalGlobalMem;
  std::size_t sharedMemPerBlock;
  int regsPerBlock;
  int warpSize;
  std::size_t memPitch;
  int maxThreadsPerBlock;
  int maxThreadsDim[3];
  int maxGridSize[3];
  std::size_t totalConstMem;
  int major;
  int minor;
  int multiProcessorCount;
  int integrated;
  int canMapHostMemory;
  int concurrentKernels;
  int ECCEnabled;
  int pciBusID;
  int pciDeviceID;
  int pciDomainID;
  int tccDriver;
  int asyncEngineCount;
  int unifiedAddressing;
  int memoryBusWidth;
  int l2CacheSize;
  int maxThreadsPerMultiProcessor;
  int streamPrioritiesSupported;
  std::size_t sharedMemPerMultiprocessor;
  int regsPerMultiprocessor;
  int managedMemory;
  int pageableMemoryAccess;
  int concurrentManagedAccess;
  int canUseHostPointerForRegisteredMem;
  int cooperativeLaunch;
  std::size_t sharedMemPerBlockOptin;
  int maxBlocksPerMultiProcessor;
  std::size_t reservedSharedMemPerBlock;
  int hostRegisterSupported;
  int hostRegisterReadOnlySupported;
  int memoryPoolsSupported;
};
