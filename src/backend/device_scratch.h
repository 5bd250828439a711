// What a device's ops take of its memory for themselves: known without a device, for plans.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/include/pack.h"

namespace stagecoach {

// Up to so many rows, reading packed weights for every eighth is about as fast as unpacking them,
// which reads and writes them for a library to read again; and as many sequences decode together
// with results that do not depend on each other.
inline constexpr std::int64_t kMostFewRows = 32;
// Of unpacked weights: enough outputs to fill a large device, little beside a model.
inline constexpr std::int64_t kUnpackedBytes = std::int64_t{64} << 20;
// Of a head at most so many dimensions.
inline constexpr std::int64_t kLargestDeviceHead = 256;
// What cuBLAS wants for its best algorithms, on the newest architectures.
inline constexpr std::int64_t kCublasBytes = std::int64_t{32} << 20;
// Small tables on their way.
inline constexpr std::int64_t kArgumentBytes = std::int64_t{2} << 20;

// For partial sums of attention, where sequences decode: splits of 256 keys.
constexpr std::int64_t decode_scratch_bytes(std::int64_t sequences, std::int64_t positions,
                                            std::int64_t heads, std::int64_t head_dim) {
  constexpr std::int64_t kSplitKeys = 256, kFloat = 4;
  return sequences * ((positions + kSplitKeys - 1) / kSplitKeys) * heads * (head_dim + 2) * kFloat;
}

// For products of so many rows with weights of so many inputs at most.
constexpr std::int64_t device_scratch_bytes(std::int64_t rows, std::int64_t widest) {
  constexpr std::int64_t kLargestElement = 4, kHalf = 2;
  const std::int64_t always = kCublasBytes + kArgumentBytes;
  if (rows <= kMostFewRows) return always;
  return always + std::max(kUnpackedBytes, kPanelRows * widest * kLargestElement) +
         rows * widest * kHalf;
}

}  // namespace stagecoach
