// When a test of GPUs is skipped.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string_view>

#include "base/error.h"

namespace stagecoach {

// Whether this error of opening a GPU says that the PC has none that this build can use. All others
// are failures, and so are these where simulated devices were to be used.
inline bool says_no_gpu(const Error& error) {
  constexpr std::string_view kMissing[] = {
      "the cuda module cannot be opened", "no NVIDIA driver answers",
      "the NVIDIA driver serves CUDA", "and no GPU that CUDA can use", "has compute capability"};
  const std::string_view what = error.what();
  return error.kind() == ErrorKind::kResources &&
         std::ranges::any_of(kMissing,
                             [&](std::string_view text) { return what.find(text) != what.npos; });
}

inline bool skips_gpu(const Error& error) {
  return std::getenv("STAGECOACH_MODULES") == nullptr && says_no_gpu(error);
}

}  // namespace stagecoach
