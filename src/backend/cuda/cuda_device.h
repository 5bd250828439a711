// Which GPU this process uses, and whether it can.
#pragma once

#include <cstdint>
#include <string>

#include "backend/cuda_module.h"

namespace stagecoach::cuda {

class Device {
 public:
  // GPUs of this PC, one at least. Throws resource_error where there is no driver, a driver too
  // old, or none.
  static int count();

  // Throws resource_error where there is no driver, a driver too old, no such device, or one below
  // compute capability 7.5.
  explicit Device(const CudaOptions& options);

  // Makes it the device of the calling thread.
  void use() const;
  bool try_use() const noexcept;
  // "sm_86x82": GPUs with other numbers of processors get other sums from cuBLAS.
  std::string architecture() const;
  std::string label() const;  // "GPU 0 (NVIDIA GeForce RTX 3090)"
  std::int64_t free_bytes() const;
  int capability() const { return capability_; }
  int processors() const { return processors_; }
  // Ranks of this host that use it, this one included.
  int sharers() const { return sharers_; }

 private:
  int ordinal_ = 0;
  int capability_ = 0;  // 86
  int processors_ = 0;
  int sharers_ = 1;
  std::string name_;
};

}  // namespace stagecoach::cuda
