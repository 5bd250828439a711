// What a device's ops take of its memory for themselves: known without a device, for plans.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/include/decode_splits.h"
#include "kernels/include/ops.h"
#include "kernels/include/pack.h"

namespace stagecoach {

// Up to so many rows, reading packed weights for every eighth is about as fast as unpacking them,
// which reads and writes them for a library to read again; and as many sequences decode together
// with results that do not depend on each other.
inline constexpr std::int64_t kMostFewRows = 32;
// Of unpacked weights, twice: enough outputs to fill a large device, little beside a model.
inline constexpr std::int64_t kUnpackedBytes = std::int64_t{64} << 20;
// Of a head at most so many dimensions.
inline constexpr std::int64_t kLargestDeviceHead = 256;
// What cuBLAS wants for its best algorithms, on the newest architectures.
inline constexpr std::int64_t kCublasBytes = std::int64_t{32} << 20;
// Small tables: what they begin with. That of spans may grow.
inline constexpr std::int64_t kSpanTableBytes = std::int64_t{1} << 20;
inline constexpr std::int64_t kArgumentBytes = 2 * kSpanTableBytes;

// For partial sums of attention, where sequences decode.
constexpr std::int64_t decode_scratch_bytes(std::int64_t sequences, std::int64_t positions,
                                            std::int64_t heads, std::int64_t head_dim) {
  constexpr std::int64_t kFloat = 4;
  return sequences * decode_splits(positions) * heads * (head_dim + 2) * kFloat;
}

// For the spans of a batch with their page tables, of so many layers.
constexpr std::int64_t span_table_bytes(std::int64_t sequences, std::int64_t positions,
                                        std::int64_t layers) {
  constexpr std::int64_t kPageEntry = 2 * sizeof(std::byte*);  // keys, values
  const std::int64_t pages = (positions + kKvPageTokens - 1) / kKvPageTokens;
  const std::int64_t span = static_cast<std::int64_t>(sizeof(KvSpan)) + pages * kPageEntry;
  return static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(layers * sequences * span)));
}

// For products of so many rows with weights of so many inputs at most.
constexpr std::int64_t device_scratch_bytes(std::int64_t rows, std::int64_t widest) {
  constexpr std::int64_t kLargestElement = 4, kHalf = 2;
  const std::int64_t always = kCublasBytes + kArgumentBytes;
  if (rows <= kMostFewRows) return always;
  return always + 2 * std::max(kUnpackedBytes, kPanelRows * widest * kLargestElement) +
         rows * widest * kHalf;
}

}  // namespace stagecoach
