#include "checkpoint/pytorch/pytorch_set.h"

#include <algorithm>
#include <array>
#include <string_view>
#include <utility>

#include "checkpoint/pytorch/pytorch_file.h"
#include "checkpoint/shard_index.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// The order in which Hugging Face looks.
constexpr const char* kSingle = "pytorch_model.bin";
constexpr const char* kIndex = "pytorch_model.bin.index.json";
constexpr std::array<std::string_view, 2> kWrapperPrefixes = {"_orig_mod.", "module."};

// What cannot be looked at counts as there: opening it then says why.
bool present(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) || error;
}

// Only what stands before every name is a wrapper's.
void strip_wrappers(TensorSet& set) {
  for (;;) {
    const auto common = [&set](std::string_view prefix) {
      return std::all_of(set.tensors.begin(), set.tensors.end(),
                         [&](const auto& item) { return item.first.starts_with(prefix); });
    };
    const auto prefix = std::find_if(kWrapperPrefixes.begin(), kWrapperPrefixes.end(), common);
    if (set.tensors.empty() || prefix == kWrapperPrefixes.end()) return;
    std::map<std::string, StoredTensor> stripped;
    for (auto& [name, tensor] : set.tensors)
      stripped.emplace(name.substr(prefix->size()), std::move(tensor));
    set.tensors = std::move(stripped);
  }
}

}  // namespace

bool holds_pytorch(const fs::path& directory) {
  return present(directory / kSingle) || present(directory / kIndex);
}

TensorSet open_pytorch(const fs::path& directory) {
  TensorSet set;
  if (present(directory / kSingle)) {
    add_pytorch_file(set, directory / kSingle);
  } else {
    const ShardIndex index = read_shard_index(directory / kIndex);
    for (const std::string& file : index.files) add_pytorch_file(set, directory / file);
    check_agreement(index, set);
  }
  strip_wrappers(set);
  return set;
}

}  // namespace stagecoach
