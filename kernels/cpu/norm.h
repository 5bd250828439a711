// LayerNorm and RMSNorm, two passes over a row for its moments and one to write it.
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

// Sum of term(x[i..]) over a row. Four chains in an order that depends on `cols` alone; short
// chains also keep the rounding error of long rows small.
template <typename Term>
inline float sum_row(const float* x, std::int64_t cols, Term term) {
  Vec sum[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= cols; i += 4 * kLanes)
    for (int j = 0; j < 4; ++j) sum[j] += term(load(x + i + j * kLanes));
  for (; i + kLanes <= cols; i += kLanes) sum[0] += term(load(x + i));
  float total = sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  // The ragged end lane by lane: a mean subtracted from padding would not be zero.
  for (; i < cols; ++i) {
    float lane[kLanes];
    store(lane, term(broadcast(x[i])));
    total += lane[0];
  }
  return total;
}

inline void norm_row(const NormArgs& args, const float* x, float* y) {
  const float count = static_cast<float>(args.cols);
  float mean = 0.0f;
  if (args.kind == NormKind::kLayerNorm)
    mean = sum_row(x, args.cols, [](Vec v) { return v; }) / count;
  const float variance =
      sum_row(x, args.cols, [mean](Vec v) { return (v - mean) * (v - mean); }) / count;
  const float scale = 1.0f / __builtin_sqrtf(variance + args.epsilon);
  for (std::int64_t i = 0; i < args.cols; i += kLanes) {
    const std::int64_t n = args.cols - i;
    Vec v = (load_first(x + i, n) - mean) * scale * load_first(args.weight + i, n);
    if (args.bias != nullptr) v += load_first(args.bias + i, n);
    store_first(y + i, v, n);
  }
}

inline void norm(const NormArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row)
    norm_row(args, args.x + row * args.cols, args.y + row * args.cols);
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
