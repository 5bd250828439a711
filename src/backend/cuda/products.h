// Matrix products on the device: own kernels for few rows, cuBLAS for many.
#pragma once

#include <cublas_v2.h>

#include "backend/cuda/cuda_handles.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda {

// Compute capability: tensor cores before do not multiply bfloat16.
inline constexpr int kLowestWithBF16 = 80;

class Products {
 public:
  Products(cudaStream_t stream, int capability);  // of the device: 86
  Products(const Products&) = delete;
  Products& operator=(const Products&) = delete;

  bool multiplies(InputType input, DType weights) const;
  void multiply(const MatmulArgs& args);

  // Scratch memory, which moves when it grows.
  const void* weights() const { return weights_.data(); }
  const void* inputs() const { return inputs_.data(); }

 private:
  void multiply_few(const MatmulArgs& args);
  void multiply_many(const MatmulArgs& args);

  cudaStream_t stream_;
  const int capability_;
  Scratch workspace_;  // cuBLAS's own: freed after it
  struct Cublas {
    Cublas();
    ~Cublas();
    Cublas(const Cublas&) = delete;
    Cublas& operator=(const Cublas&) = delete;
    cublasHandle_t handle = nullptr;
  } cublas_;
  Scratch weights_;  // unpacked, some outputs at a time
  Scratch inputs_;   // unpacked, of kInt8
};

}  // namespace stagecoach::cuda
