// CUDA's status codes as Stagecoach's errors.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

namespace stagecoach::cuda {

// `doing`: "allocating 1.2 GB on the device", for the message. Throws resource_error for what the
// device or the driver lacks, an internal error for what only a bug can cause.
void check(cudaError_t status, const char* doing);
void check(cublasStatus_t status, const char* doing);
// After a failure that the job can do without: throws what the device itself has failed with, which
// almost any call may return. The stream may not be captured.
void check_device(cudaStream_t stream);
// Of the launches since the last call.
void check_launch(const char* kernel);

}  // namespace stagecoach::cuda
