// Products with float32 x: a weight of any type becomes float32, exactly, before it meets x.
#pragma once

#include <type_traits>

#include "kernels/cpu/multiply.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

template <typename Type>
class F32Product {
 public:
  using Weights = Type;
  static constexpr int kRows = kTileRows, kPanels = kTilePanels;
  static constexpr int kSums = kRows * kPanels;
  static constexpr int kStreamRows = kRows;
  static constexpr std::int64_t kFewRows = 48;
  // A block of weights (16 KiB) stays in L1 while the rows pass; x of the chunk's block (96 KiB)
  // stays in L2 while the panels pass.
  static constexpr std::int64_t kBlockK = 256 / kPanels;
  static constexpr std::int64_t kChunkRows = 96 * kPanels;
  static_assert(kBlockK % kGroupCols == 0);

  template <int R, int P>
  static void stream(const MatmulArgs& args, std::int64_t panel, float* sums) {
    if constexpr (R >= kCopiedRows && !Grouped<Type>) return stream_copied<R, P>(args, panel, sums);
    const auto* x = reinterpret_cast<const float*>(args.x.data);
    const std::int64_t x_stride = args.x.stride / static_cast<std::int64_t>(sizeof(float));
    if constexpr (Grouped<Type>) {
      const std::byte* const groups = panel_groups<Type>(args, panel);
      run_group_tile<Type, R, P>({x, x_stride, groups, panel_groups<Type>(args, panel + 1) - groups,
                                  args.in, sums, P * kPanel});
    } else {
      run_tile<Type, R, P>({x, x_stride, panel_weights<Type>(args, panel), kPanel, kPanel * args.in,
                            args.in, sums, P * kPanel, false});
    }
  }

  F32Product(const MatmulArgs& args, std::int64_t row, std::int64_t rows)
      : args_(args), row_(row), rows_(rows) {}

  // Columns [k, k + count) of x, copied to rows a fixed distance apart, and not one where those of
  // a tile push each other out of the cache.
  void enter_block(std::int64_t k, std::int64_t count) {
    k_ = k;
    count_ = count;
    asked_ = 0;
    const auto* x = reinterpret_cast<const float*>(args_.x.data + row_ * args_.x.stride) + k;
    const std::int64_t stride = args_.x.stride / 4;
    for (std::int64_t r = 0; r < rows_; ++r, x += stride) {
      std::int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) store(x_ + r * kXStride + i, load(x + i));
      if (i < count) store_first(x_ + r * kXStride + i, load_first(x + i, count - i), count - i);
    }
  }

  // Weights of P panels as float32: where they are, or converted.
  template <int P>
  void enter_panels(std::int64_t panel) {
    // The next block of x, into L2: a few rows with each of a chunk's panels.
    for (std::int64_t r = 0; r < kRows && asked_ < rows_ && k_ + kBlockK < args_.in; ++r, ++asked_)
      prefetch(args_.x.data + (row_ + asked_) * args_.x.stride, (k_ + kBlockK) * 4, kBlockK * 4);
    weights_ = buffer_;
    panel_stride_ = kBlockK * kPanel;
    if constexpr (std::is_same_v<Type, AsF32>) {
      weights_ = panel_weights<Type>(args_, panel) + k_ * kPanel;
      panel_stride_ = kPanel * args_.in;
    } else if constexpr (Grouped<Type>) {
      for (int p = 0; p < P; ++p)
        expand_groups<Type>(
            panel_groups<Type>(args_, panel + p) + k_ / kGroupCols * kGroupBytes<Type>, count_,
            buffer_ + p * panel_stride_);
    } else {
      for (int p = 0; p < P; ++p) {
        const typename Type::Element* source = panel_weights<Type>(args_, panel + p) + k_ * kPanel;
        for (std::int64_t i = 0; i < count_ * kPanel; i += kLanes)
          store(buffer_ + p * panel_stride_ + i, Type::load_vec(source + i));
      }
    }
  }

  template <int R, int P>
  void run(std::int64_t row, const PartialSums& sums) const {
    run_tile<AsF32, R, P, kXStride>({x_ + row * kXStride, kXStride, weights_, kPanel, panel_stride_,
                                     count_, sums.data, sums.stride, sums.continued});
  }

 private:
  static constexpr std::int64_t kXStride = kBlockK + kPanel;
  // From so many rows on, copying x as enter_block does costs less than reading it where it lies.
  static constexpr int kCopiedRows = 4;

  template <int R, int P>
  static void stream_copied(const MatmulArgs& args, std::int64_t panel, float* sums) {
    F32Product product(args, 0, R);
    for (std::int64_t k = 0; k < args.in; k += kBlockK) {
      product.enter_block(k, smaller(kBlockK, args.in - k));
      run_tile<Type, R, P, kXStride, true>(
          {product.x_, kXStride, panel_weights<Type>(args, panel) + k * kPanel, kPanel,
           kPanel * args.in, product.count_, sums, P * kPanel, k > 0});
    }
  }

  const MatmulArgs& args_;
  const std::int64_t row_, rows_;
  std::int64_t k_ = 0, count_ = 0, asked_ = 0;
  const float* weights_ = nullptr;
  std::int64_t panel_stride_ = 0;
  alignas(64) float x_[kChunkRows * kXStride];
  alignas(64) float buffer_[kPanels * kBlockK * kPanel];
};

inline void multiply_f32(const MatmulArgs& args, std::int64_t begin, std::int64_t end) {
  switch (args.weight_type) {
    case DType::kF32:
      return multiply<F32Product<AsF32>>(args, begin, end);
    case DType::kF16:
      return multiply<F32Product<AsF16>>(args, begin, end);
    case DType::kBF16:
      return multiply<F32Product<AsBF16>>(args, begin, end);
    case DType::kQ8:
      return multiply<F32Product<AsQ8>>(args, begin, end);
    case DType::kQ4:
      return multiply<F32Product<AsQ4>>(args, begin, end);
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
