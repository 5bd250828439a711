// Products against a double loop.
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <cmath>

#include "sim_test.h"

namespace {

class Products : public SimTest {};

struct Handle {
  explicit Handle(cudaStream_t stream) {
    EXPECT_EQ(cublasCreate(&handle), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(cublasSetStream(handle, stream), CUBLAS_STATUS_SUCCESS);
  }
  ~Handle() { (void)cublasDestroy(handle); }
  cublasHandle_t handle = nullptr;
};

// Small integers and quarters: exact in every type and every order of summation.
template <class T>
std::vector<T> numbers(std::size_t count, int seed) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] =
        T(static_cast<float>(static_cast<int>(i * 7 + static_cast<std::size_t>(seed)) % 9 - 4) / 4);
  return values;
}

template <class T>
constexpr cudaDataType type_of() {
  if constexpr (std::is_same_v<T, float>) return CUDA_R_32F;
  return std::is_same_v<T, __half> ? CUDA_R_16F : CUDA_R_16BF;
}

template <class In, class Out>
void check(cublasOperation_t ta, cublasOperation_t tb) {
  const int m = 5, n = 4, k = 7, lda = 9, ldb = 8, ldc = 6;
  Stream stream;
  const Handle cublas(stream);
  const auto a = numbers<In>(static_cast<std::size_t>(lda * 7), 1);
  const auto b = numbers<In>(static_cast<std::size_t>(ldb * 7), 5);
  const auto c = numbers<Out>(static_cast<std::size_t>(ldc * n), 2);
  DeviceArray<In> da(a), db(b);
  DeviceArray<Out> dc(c);
  const float alpha = 2, beta = 0.5f;
  ASSERT_EQ(cublasGemmEx(cublas.handle, ta, tb, m, n, k, &alpha, da.get(), type_of<In>(), lda,
                         db.get(), type_of<In>(), ldb, &beta, dc.get(), type_of<Out>(), ldc,
                         CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            CUBLAS_STATUS_SUCCESS);
  const auto got = dc.read(stream);
  for (int col = 0; col < n; ++col)
    for (int row = 0; row < ldc; ++row) {
      const auto at = static_cast<std::size_t>(col * ldc + row);
      double want = static_cast<float>(c[at]);
      if (row < m) {
        double sum = 0;
        for (int i = 0; i < k; ++i) {
          const int in_a = ta == CUBLAS_OP_N ? i * lda + row : row * lda + i;
          const int in_b = tb == CUBLAS_OP_N ? col * ldb + i : i * ldb + col;
          sum += static_cast<double>(static_cast<float>(a[static_cast<std::size_t>(in_a)])) *
                 static_cast<double>(static_cast<float>(b[static_cast<std::size_t>(in_b)]));
        }
        want = 2 * sum + want / 2;
      }
      ASSERT_EQ(static_cast<float>(got[at]), static_cast<float>(Out(static_cast<float>(want))));
    }
}

TEST_F(Products, AreRightInEveryTypeAndTranspose) {
  for (const auto ta : {CUBLAS_OP_N, CUBLAS_OP_T})
    for (const auto tb : {CUBLAS_OP_N, CUBLAS_OP_T}) {
      check<float, float>(ta, tb);
      check<__half, float>(ta, tb);
      check<__half, __half>(ta, tb);
      check<__nv_bfloat16, float>(ta, tb);
      check<__nv_bfloat16, __nv_bfloat16>(ta, tb);
    }
  EXPECT_EQ(cuda_sim::statistics().launches["cublasGemmEx"], 20u);
}

cublasStatus_t product(cublasHandle_t handle, const void* a, cudaDataType type, void* c, int lda,
                       cublasComputeType_t compute, float beta = 0) {
  const float alpha = 1;
  return cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, 2, 2, 2, &alpha, a, type, lda, a, type, 2,
                      &beta, c, CUDA_R_32F, 2, compute, CUBLAS_GEMM_DEFAULT);
}

TEST_F(Products, RefuseWhatCublasRefuses) {
  Stream stream;
  const Handle cublas(stream);
  DeviceArray<float> a(4), c(4);
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 1, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_16F),
            CUBLAS_STATUS_NOT_SUPPORTED);
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_8I, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_NOT_SUPPORTED);
  const Handle no_stream(nullptr);
  EXPECT_EQ(product(no_stream.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_EQ(cublasSetWorkspace(cublas.handle, &c, 16), CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_STREQ(cublasGetStatusName(CUBLAS_STATUS_ALLOC_FAILED), "CUBLAS_STATUS_ALLOC_FAILED");
}

TEST_F(Products, DoNotReadCWithBeta0) {
  Stream stream;
  const Handle cublas(stream);
  DeviceArray<float> a(std::vector<float>{1, 0, 0, 1}), c(4);  // C is NaN
  ASSERT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(c.read(stream), (std::vector<float>{1, 0, 0, 1}));
}

TEST_F(Products, OfBfloat16NeedCapability80) {
  for (const int capability : {75, 80}) {
    cuda_sim::reset({.capability = capability});
    Stream stream;
    const Handle cublas(stream);
    DeviceArray<__nv_bfloat16> a(4);
    DeviceArray<float> c(4);
    EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_16BF, c.get(), 2, CUBLAS_COMPUTE_32F),
              capability < 80 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS);
  }
}

// Whether it takes memory of its own: it has none once it is told a stream.
TEST_F(Products, ForgetTheirWorkspaceWithAnotherStream) {
  for (const bool stream_first : {true, false}) {
    cuda_sim::reset({});
    Stream stream;
    const Handle cublas(stream);
    DeviceArray<float> a(4), c(4);
    DeviceArray<std::byte> workspace(1024);
    const std::size_t before = cuda_sim::statistics().memory;
    EXPECT_EQ(cublasSetWorkspace(cublas.handle, workspace.get(), 1024), CUBLAS_STATUS_SUCCESS);
    if (!stream_first) {
      EXPECT_EQ(cublasSetStream(cublas.handle, stream), CUBLAS_STATUS_SUCCESS);
    }
    EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_CUDA(cudaStreamSynchronize(stream));
    EXPECT_EQ(cuda_sim::statistics().memory, before + (stream_first ? 0 : 4 << 20));
  }
}

TEST_F(Products, OverwriteTheirWorkspaceAndFailWithoutIt) {
  Stream stream;
  const Handle cublas(stream);
  DeviceArray<float> a(std::vector<float>{1, 0, 0, 1}), c(4);
  {
    DeviceArray<float> workspace(std::vector<float>(256, 1.0f));
    EXPECT_CUDA(cudaDeviceSynchronize());
    EXPECT_EQ(cublasSetWorkspace(cublas.handle, workspace.get(), 1024), CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_TRUE(std::isnan(workspace.read(stream)[255]));
  }
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  EXPECT_TRUE(message_has("that were freed"));
  cuda_sim::reset({});
}

TEST_F(Products, AreRefusedWithAnotherCurrentDevice) {
  cuda_sim::reset({.devices = 2});
  Stream stream;
  const Handle cublas(stream);
  DeviceArray<float> a(4), c(4);
  EXPECT_CUDA(cudaSetDevice(1));
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_INVALID_VALUE);
  EXPECT_TRUE(message_has("another device than the current"));
  EXPECT_CUDA(cudaSetDevice(0));
}

TEST_F(Products, OfHostMemoryFailTheDevice) {
  Stream stream;
  const Handle cublas(stream);
  float a[4] = {};
  DeviceArray<float> c(4);
  EXPECT_EQ(product(cublas.handle, a, CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_SUCCESS);
  EXPECT_CUDA_ERROR(cudaStreamSynchronize(stream), cudaErrorIllegalAddress);
  cuda_sim::reset({});
}

TEST_F(Products, FailAsInjected) {
  cuda_sim::reset({.faults = "cublasGemmEx:1:CUBLAS_STATUS_EXECUTION_FAILED"});
  Stream stream;
  const Handle cublas(stream);
  DeviceArray<float> a(4), c(4);
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_EXECUTION_FAILED);
  EXPECT_EQ(product(cublas.handle, a.get(), CUDA_R_32F, c.get(), 2, CUBLAS_COMPUTE_32F),
            CUBLAS_STATUS_SUCCESS);
}

}  // namespace
