// What the golden tests of all families share.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

namespace stagecoach {

// tests/data/golden, or where STAGECOACH_GOLDEN_DATA says: the tests also run where the sources are
// not (scripts/bench/cuda_card.sh).
inline std::filesystem::path golden_folder() {
  const char* const folder = std::getenv("STAGECOACH_GOLDEN_DATA");
  return folder != nullptr ? folder : std::filesystem::path(TEST_DATA_DIR) / "golden";
}

// Its folders, in order.
inline std::vector<std::string> fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden_folder()))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// Bits, not values: 0.0 and -0.0 differ here, and so would two NaNs.
inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace stagecoach
