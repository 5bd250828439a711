#include "cublas_v2.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_sim_rounding.h"
#include "kernels/include/dtype.h"
#include "runtime.h"
#include "work.h"

struct cublasContext {
  int device = 0;
  cudaStream_t stream = nullptr;
  // Until the program gives one, and again from the next cublasSetStream on, the library's own.
  std::byte* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  std::byte* own_workspace = nullptr;
};

namespace cuda_sim {
namespace {

struct Matrix {
  const std::byte* data;
  cudaDataType type;
  std::int64_t rows, cols;  // as stored
  std::int64_t ld;
};

struct Gemm {
  bool transpose_a, transpose_b;
  std::int64_t m, n, k;
  float alpha, beta;
  Matrix a, b, c;
};

std::size_t size_of(cudaDataType type) {
  return type == CUDA_R_32F ? 4 : 2;
}

double load(const std::byte* at, cudaDataType type) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, at, size_of(type));
  if (type == CUDA_R_32F) return std::bit_cast<float>(bits);
  const auto half = static_cast<std::uint16_t>(bits);
  return type == CUDA_R_16F ? stagecoach::f16_to_f32(half) : stagecoach::bf16_to_f32(half);
}

void store(std::byte* at, cudaDataType type, double value) {
  std::uint32_t bits = 0;
  if (type == CUDA_R_32F) {
    bits = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  } else {
    const float odd = narrow_to_odd(value);
    bits = type == CUDA_R_16F ? stagecoach::f32_to_f16(odd) : stagecoach::f32_to_bf16(odd);
  }
  std::memcpy(at, &bits, size_of(type));
}

// Rows of op(X) one after the other; by columns of op(X) if `by_column`.
std::vector<double> gather(const Matrix& x, bool transpose, bool by_column) {
  std::vector<double> result(static_cast<std::size_t>(x.rows * x.cols));
  const std::size_t size = size_of(x.type);
  for (std::int64_t col = 0; col < x.cols; ++col)
    for (std::int64_t row = 0; row < x.rows; ++row) {
      const double value = load(x.data + static_cast<std::size_t>(col * x.ld + row) * size, x.type);
      // Contiguous along the stored column: along op's column, unless it is transposed.
      const bool columns = by_column != transpose;
      result[static_cast<std::size_t>(columns ? col * x.rows + row : row * x.cols + col)] = value;
    }
  return result;
}

void multiply(const Gemm& g) {
  std::vector<double> a, b;
  if (g.k > 0) {
    a = gather(g.a, g.transpose_a, false);
    b = gather(g.b, g.transpose_b, true);
  }
  auto* const c = const_cast<std::byte*>(g.c.data);
  for (std::int64_t col = 0; col < g.n; ++col)
    for (std::int64_t row = 0; row < g.m; ++row) {
      double sum = 0;
      for (std::int64_t i = 0; i < g.k; ++i)
        sum +=
            a[static_cast<std::size_t>(row * g.k + i)] * b[static_cast<std::size_t>(col * g.k + i)];
      std::byte* const target =
          c + static_cast<std::size_t>(col * g.c.ld + row) * size_of(g.c.type);
      double value = static_cast<double>(g.alpha) * sum;
      // With beta 0, C is not read: it may hold NaN.
      if (g.beta < 0 || g.beta > 0) value += static_cast<double>(g.beta) * load(target, g.c.type);
      store(target, g.c.type, value);
    }
}

// What the library takes by itself where the program gives it no workspace: the least that NVIDIA
// documents ("cublasSetWorkspace").
constexpr std::size_t kOwnWorkspaceBytes = std::size_t{4} << 20;

bool supported(const Gemm& g, cublasComputeType_t compute, int capability) {
  if (compute != CUBLAS_COMPUTE_32F) return false;
  const cudaDataType type = g.a.type;
  if (type != g.b.type) return false;
  if (type == CUDA_R_32F) return g.c.type == CUDA_R_32F;
  if (type == CUDA_R_16BF && capability < 80) return false;
  if (type != CUDA_R_16F && type != CUDA_R_16BF) return false;
  return g.c.type == CUDA_R_32F || g.c.type == type;
}

// Every element that the product touches is in live device memory.
bool in_memory(Runtime& runtime, const Matrix& x) {
  if (x.rows == 0 || x.cols == 0) return true;
  const DeviceMemory* const memory = runtime.memory_of(x.data);
  if (memory == nullptr) return false;
  const std::int64_t elements = (x.cols - 1) * x.ld + x.rows;
  return memory->contains(x.data, static_cast<std::size_t>(elements) * size_of(x.type));
}

bool wrong_shape(const Matrix& x) {
  return x.rows < 0 || x.cols < 0 || x.ld < std::max<std::int64_t>(1, x.rows);
}

cublasStatus_t status_of(cudaError_t error) {
  return error == cudaSuccess                 ? CUBLAS_STATUS_SUCCESS
         : error == cudaErrorMemoryAllocation ? CUBLAS_STATUS_ALLOC_FAILED
                                              : CUBLAS_STATUS_EXECUTION_FAILED;
}

// Calls of the library go through the same gate as the runtime's; injected statuses end them.
template <class Body>
cublasStatus_t library_call(const char* function, Body&& body) {
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  const cudaError_t error = call(function, CallKind::kAsync, [&](Runtime& runtime) {
    if (runtime.injected_status != 0) {
      status = static_cast<cublasStatus_t>(runtime.injected_status);
      return cudaSuccess;
    }
    status = body(runtime);
    return cudaSuccess;
  });
  return error != cudaSuccess ? status_of(error) : status;
}

// Where the product may write what it likes; null: there is no memory for that.
std::byte* workspace_of(Runtime& runtime, cublasContext& handle, std::size_t& bytes) {
  bytes = handle.workspace_bytes;
  if (handle.workspace != nullptr) return handle.workspace;
  bytes = kOwnWorkspaceBytes;
  if (handle.own_workspace == nullptr)
    handle.own_workspace = runtime.device(handle.device).memory.allocate(bytes);
  return handle.own_workspace;
}

cublasStatus_t submit_gemm(const char* function, cublasHandle_t handle, Gemm g,
                           cublasComputeType_t compute, const void* alpha, const void* beta) {
  return library_call(function, [&](Runtime& runtime) {
    const auto refuse = [&](cublasStatus_t status, const char* why) {
      runtime.say(fmt::format("{}: {}", function, why));
      return status;
    };
    if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
    if (alpha == nullptr || beta == nullptr || g.m < 0 || g.n < 0 || g.k < 0 || wrong_shape(g.a) ||
        wrong_shape(g.b) || wrong_shape(g.c))
      return refuse(CUBLAS_STATUS_INVALID_VALUE, "a size or leading dimension is wrong");
    if (!supported(g, compute, runtime.config.capability))
      return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "no such combination of types");
    CUstream_st* const stream = find_stream(runtime, handle->stream, function);
    if (stream == nullptr || stream->device != handle->device) return CUBLAS_STATUS_INVALID_VALUE;
    if (thread_state().device != handle->device)
      return refuse(CUBLAS_STATUS_INVALID_VALUE,
                    "the handle is of another device than the current");
    if (g.m == 0 || g.n == 0) return CUBLAS_STATUS_SUCCESS;
    std::memcpy(&g.alpha, alpha, sizeof g.alpha);
    std::memcpy(&g.beta, beta, sizeof g.beta);
    std::size_t bytes = 0;
    std::byte* const workspace = workspace_of(runtime, *handle, bytes);
    if (workspace == nullptr) return CUBLAS_STATUS_ALLOC_FAILED;
    Operation operation{.what = function};
    if (in_memory(runtime, g.a) && in_memory(runtime, g.b) && in_memory(runtime, g.c)) {
      operation.work = make_device_work(function, [g, workspace, bytes] {
        std::memset(workspace, 0xff, bytes);  // faults where it was freed
        multiply(g);
      });
    } else {
      operation.work = make_failing_work(
          cudaErrorIllegalAddress, fmt::format("{}: a matrix is not in device memory", function));
    }
    return status_of(submit(runtime, *stream, std::move(operation)));
  });
}

Matrix stored(const void* data, cudaDataType type, bool transposed, std::int64_t rows,
              std::int64_t cols, std::int64_t ld) {
  if (transposed) std::swap(rows, cols);
  return {static_cast<const std::byte*>(data), type, rows, cols, ld};
}

}  // namespace
}  // namespace cuda_sim

using cuda_sim::library_call;
using cuda_sim::Runtime;

cublasStatus_t cublasCreate(cublasHandle_t* handle) {
  return library_call("cublasCreate", [&](Runtime& runtime) {
    if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    *handle = new cublasContext;
    (*handle)->device = cuda_sim::thread_state().device;
    runtime.cublas_handles.insert(*handle);
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasDestroy(cublasHandle_t handle) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  {
    Runtime& runtime = cuda_sim::runtime();
    std::lock_guard lock(runtime.mutex);
    runtime.cublas_handles.erase(handle);  // whatever state the device is in
    if (handle->own_workspace != nullptr) {
      cuda_sim::wait_for_device(runtime, handle->device);
      runtime.device(handle->device).memory.free(handle->own_workspace);
    }
  }
  const cublasStatus_t status =
      library_call("cublasDestroy", [](Runtime&) { return CUBLAS_STATUS_SUCCESS; });
  delete handle;
  return status;
}

cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
  return library_call("cublasSetStream", [&](Runtime&) {
    if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
    handle->stream = stream;
    handle->workspace = nullptr;
    return CUBLAS_STATUS_SUCCESS;
  });
}

cublasStatus_t cublasSetWorkspace(cublasHandle_t handle, void* workspace, std::size_t bytes) {
  return library_call("cublasSetWorkspace", [&](Runtime& runtime) {
    if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
    handle->workspace = nullptr;
    if (bytes == 0) return CUBLAS_STATUS_SUCCESS;
    const auto* const memory = runtime.memory_of(workspace);
    if (memory == nullptr || !memory->contains(workspace, bytes) ||
        reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0) {
      runtime.say("cublasSetWorkspace: not device memory, or not aligned to 256 bytes");
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    handle->workspace = static_cast<std::byte*>(workspace);
    handle->workspace_bytes = bytes;
    return CUBLAS_STATUS_SUCCESS;
  });
}

const char* cublasGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
      return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
      return "CUBLAS_STATUS_LICENSE_ERROR";
  }
  return "CUBLAS_STATUS_UNKNOWN";
}

const char* cublasGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "the resource allocation failed";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an invalid value was used as an argument";
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return "an absent device architectural feature is required";
    case CUBLAS_STATUS_MAPPING_ERROR:
      return "an access to device memory failed";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "the function failed to launch on the device";
    case CUBLAS_STATUS_INTERNAL_ERROR:
      return "an internal operation failed";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the functionality is not supported";
    case CUBLAS_STATUS_LICENSE_ERROR:
      return "the functionality needs a license";
  }
  return "unknown status";
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void* alpha,
                            const void* A, cudaDataType Atype, int lda, const void* B,
                            cudaDataType Btype, int ldb, const void* beta, void* C,
                            cudaDataType Ctype, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t) {
  const bool ta = transa != CUBLAS_OP_N, tb = transb != CUBLAS_OP_N;
  return cuda_sim::submit_gemm(
      "cublasGemmEx", handle,
      {ta, tb, m, n, k, 0, 0, cuda_sim::stored(A, Atype, ta, m, k, lda),
       cuda_sim::stored(B, Btype, tb, k, n, ldb), cuda_sim::stored(C, Ctype, false, m, n, ldc)},
      compute, alpha, beta);
}
