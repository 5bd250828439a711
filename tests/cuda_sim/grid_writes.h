// Which block of a grid wrote which bytes. Blocks run one after the other here, and at the same
// time on a device: two that write one byte, or add to it, race there and never show it here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>

namespace cuda_sim {

class GridWrites {
 public:
  // Another block that has written one of these bytes before.
  std::optional<std::uint32_t> add(const void* address, std::size_t bytes, std::uint32_t block) {
    const auto begin = reinterpret_cast<std::uintptr_t>(address);
    for (std::uintptr_t at = begin; at < begin + bytes; ++at) {
      const std::uintptr_t chunk = at / kChunk;
      auto found = chunks_.find(chunk);
      if (found == chunks_.end()) {
        if (chunks_.size() == kMostChunks) return {};
        found = chunks_.try_emplace(chunk).first;
      }
      std::uint32_t& writer = found->second[at % kChunk];
      if (writer != 0 && writer != block + 1) return writer - 1;
      writer = block + 1;
    }
    return {};
  }

 private:
  static constexpr std::size_t kChunk = 16;
  static constexpr std::size_t kMostChunks = 1 << 16;  // of large grids it sees the beginning

  std::unordered_map<std::uintptr_t, std::array<std::uint32_t, kChunk>>
      chunks_;  // block + 1; 0: none
};

}  // namespace cuda_sim
