// Activations in the form that products take (matmul_input.h).
#pragma once

#include "kernels/cpu/vec.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr int kGroupVecs = kGroupCols / kLanes;
constexpr std::int32_t kInfinityBits = 0x7f800000;

inline int max_lanes(IntVec v) {
  std::int32_t lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof v);
  std::int32_t best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = lanes[i] > best ? lanes[i] : best;
  return best;
}

inline std::int32_t sum_lanes(IntVec v) {
  std::int32_t lanes[kLanes];
  __builtin_memcpy(lanes, &v, sizeof v);
  std::int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// One group of `count` columns, 1 to 32.
inline void quantize_group(const float* x, std::int64_t count, InputGroup& group) {
  Vec values[kGroupVecs];
  IntVec largest = {};  // magnitudes order like their bits; NaN is above infinity
  for (int i = 0; i < kGroupVecs; ++i) {
    const std::int64_t left = count - i * kLanes;
    values[i] = left > 0 ? load_first(x + i * kLanes, left) : Vec{};
    const IntVec magnitude = (IntVec)values[i] & 0x7fffffff;
    largest = magnitude > largest ? magnitude : largest;
  }
  const std::int32_t bits = max_lanes(largest);
  float magnitude;
  __builtin_memcpy(&magnitude, &bits, sizeof magnitude);
  const bool finite = bits < kInfinityBits;
  const bool tiny = finite && magnitude < kSmallestInputGroup;  // 127 ÷ magnitude might overflow
  const float inverse = finite && !tiny ? 127.0f / magnitude : 0.0f;
  group.scale = !finite ? __builtin_nanf("") : tiny ? 0.0f : magnitude / 127.0f;
  IntVec sum = {};
  for (int i = 0; i < kGroupVecs; ++i) {
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    const Vec rounder = broadcast(0x1.8p23f);
    const Vec scaled = finite ? values[i] * inverse : Vec{};
    const IntVec quants = (IntVec)(scaled + rounder) - (IntVec)rounder;
    sum += quants;
    using Bytes = std::int8_t __attribute__((vector_size(kLanes)));
    const Bytes bytes = __builtin_convertvector(quants, Bytes);
    __builtin_memcpy(group.quant + i * kLanes, &bytes, sizeof bytes);
  }
  group.minus_8_sum = -8 * sum_lanes(sum);
}

inline void quantize_row(const float* x, std::int64_t cols, std::byte* packed) {
  auto* group = reinterpret_cast<InputGroup*>(packed);
  for (std::int64_t k = 0; k < cols; k += kGroupCols, ++group)
    quantize_group(x + k, cols - k < kGroupCols ? cols - k : kGroupCols, *group);
}

// The upper halves are bfloat16, rounded to nearest even; the lower halves are zero.
inline IntVec round_to_bf16(Vec v) {
  const IntVec bits = (IntVec)v;
  using Unsigned = std::uint32_t __attribute__((vector_size(4 * kLanes)));  // NaN's bits may wrap
  const IntVec rounded = (IntVec)((Unsigned)bits + 0x7fff + ((Unsigned)bits >> 16 & 1));
  return (v == v ? rounded : bits | 0x400000) & static_cast<std::int32_t>(0xffff0000u);
}

inline void round_row(const float* x, std::int64_t cols, float* packed) {
  for (std::int64_t k = 0; k < cols; k += kLanes)
    store_first(packed + k, (Vec)round_to_bf16(load_first(x + k, cols - k)), cols - k);
}

inline void pack_bf16_row(const float* x, std::int64_t cols, std::uint16_t* packed) {
  for (std::int64_t k = 0; k < cols; k += kLanes) {
    const std::int64_t n = cols - k;
    const IntVec halves = round_to_bf16(load_first(x + k, n)) >> 16;
    using Narrow = std::uint16_t __attribute__((vector_size(2 * kLanes)));
    const Narrow narrow = __builtin_convertvector(halves, Narrow);
    const std::int64_t kept = n < kLanes ? n + n % 2 : kLanes;  // an odd end takes a 0 along
    __builtin_memcpy(packed + k, &narrow, static_cast<std::size_t>(kept) * sizeof(std::uint16_t));
  }
}

inline void pack_input(const PackInputArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t stride = packed_row_stride(args.type, args.cols);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* const x = args.x + row * args.x_stride;
    std::byte* const packed = args.packed + row * stride;
    switch (args.type) {
      case InputType::kF32:
        round_row(x, args.cols, reinterpret_cast<float*>(packed));
        break;
      case InputType::kBF16:
        pack_bf16_row(x, args.cols, reinterpret_cast<std::uint16_t*>(packed));
        break;
      case InputType::kInt8:
        quantize_row(x, args.cols, packed);
        break;
      case InputType::kF16:  // no kernel here multiplies it
        __builtin_trap();
    }
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
