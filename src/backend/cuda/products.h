// Matrix products on the device: own kernels for few rows, cuBLAS for many.
//
// For many rows weights are unpacked first, some outputs at a time, on a stream of their own:
// beside the product before, or whatever else the ops' stream does. Two buffers take turns.
#pragma once

#include <cublas_v2.h>

#include <span>

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
  // Of the same rows.
  void multiply(std::span<const MatmulArgs> products);

  // Unpacking is not in the order of ops: it is told when weights are there. Once what is queued by
  // then, on the ops' stream, is done:
  void ops_bring_weights() { brought_ = true; }
  // … or once `event` has passed.
  void wait_for(cudaEvent_t event);

 private:
  void multiply_few(std::span<const MatmulArgs> products);
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
  struct Unpacked {
    Scratch weights;  // of some outputs
    Order written, read;
  };

  Stream unpacking_;
  Unpacked unpacked_[2];
  std::size_t turn_ = 0;
  bool brought_ = false;
  Order weights_are_there_;
  Scratch inputs_;  // unpacked, of kInt8
};

}  // namespace stagecoach::cuda
