// How a GPU shares out the keys of a row that decodes: always the same positions to a block, so
// that the order of sums depends on the position alone.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/include/kv_page.h"

namespace stagecoach {

inline constexpr std::int64_t kSplitPages = 4;
inline constexpr std::int64_t kSplitKeys = kSplitPages * kKvPageTokens;

// Blocks that are started for each of several rows, the longest of which sees so many positions: a
// power of two, so that the same launch serves while contexts grow. Blocks beyond a row's own
// context have nothing to do.
constexpr std::int64_t decode_splits(std::int64_t longest) {
  const auto splits = static_cast<std::uint64_t>((longest + kSplitKeys - 1) / kSplitKeys);
  return longest == 0 ? 0 : static_cast<std::int64_t>(std::bit_ceil(splits));
}

}  // namespace stagecoach
