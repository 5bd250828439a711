#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/include/dtype.h"
#include "kernels/include/pack.h"

namespace stagecoach {

// A matrix, or a vector with rows == 1, that somebody else owns. data == nullptr: absent.
struct TensorView {
  const std::byte* data = nullptr;
  DType type = DType::kF32;
  Layout layout = Layout::kRows;
  std::int64_t rows = 0;
  std::int64_t cols = 0;

  explicit operator bool() const { return data != nullptr; }
  std::int64_t bytes() const { return layout_bytes(layout, type, rows, cols); }
  // Vectors (norms, biases) are always float32.
  const float* f32() const { return reinterpret_cast<const float*>(data); }
};

}  // namespace stagecoach
