#include "backend/cuda/cuda_error.h"

#include "base/error.h"

namespace stagecoach::cuda {
namespace {

const char* hint_for(cudaError_t status) {
  switch (status) {
    case cudaErrorMemoryAllocation:
      return "a smaller --device-memory leaves more to others, a smaller --micro-batch needs less";
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorInitializationError:
      return "nvidia-smi shows driver and cards; --device cpu does without";
    case cudaErrorNoKernelImageForDevice:
      return "this build is for compute capability 7.5 and up; --device cpu does without";
    case cudaErrorInvalidDevice:
      return "nvidia-smi lists the cards; --device cuda:0 is the first";
    default:
      return "nvidia-smi and dmesg show what the card says; --device cpu does without";
  }
}

// What only a bug of ours can cause: the others are the machine's.
bool is_bug(cudaError_t status) {
  switch (status) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
      return true;
    default:
      return false;
  }
}

}  // namespace

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();  // or the next launch would seem to have failed
  const std::string problem = fmt::format("{} failed on the GPU: {} ({})", doing,
                                          cudaGetErrorString(status), cudaGetErrorName(status));
  if (is_bug(status)) throw Error(ErrorKind::kInternal, problem);
  throw resource_error(problem, hint_for(status));
}

void check(cublasStatus_t status, const char* doing) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  const std::string problem =
      fmt::format("{} failed in cuBLAS: {}", doing, cublasGetStatusString(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED)
    throw resource_error(problem, hint_for(cudaErrorMemoryAllocation));
  if (status == CUBLAS_STATUS_EXECUTION_FAILED || status == CUBLAS_STATUS_NOT_INITIALIZED)
    throw resource_error(problem, hint_for(cudaErrorUnknown));
  throw Error(ErrorKind::kInternal, problem);
}

void check_device(cudaStream_t stream) {
  cudaGetLastError();
  check(cudaStreamSynchronize(stream), "waiting for the device");
}

void check_launch(const char* kernel) {
  check(cudaGetLastError(), kernel);
}

}  // namespace stagecoach::cuda
