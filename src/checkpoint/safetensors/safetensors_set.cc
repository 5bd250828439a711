#include "checkpoint/safetensors/safetensors_set.h"

#include "base/error.h"
#include "base/hash.h"
#include "checkpoint/safetensors/safetensors.h"
#include "checkpoint/shard_index.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

// The order in which Hugging Face looks.
constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// What cannot be looked at counts as there: opening it then says why.
bool present(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) || error;
}

void add_file(TensorSet& set, const fs::path& path) {
  SafetensorsFile opened(path);
  set.files.push_back(opened.take_file());
  const File& file = *set.files.back();
  for (const auto& [name, entry] : opened.tensors())
    add_tensor(set, name,
               {.file = &file,
                .offset = entry.offset,
                .bytes = entry.bytes,
                .shape = entry.shape,
                .strides = {},
                .type = entry.dtype,
                .format = entry.format()});
  set.identity +=
      fmt::format("{}, header {}", file_identity(file), hash_to_hex(opened.header_hash()));
}

}  // namespace

bool holds_safetensors(const fs::path& directory) {
  return present(directory / kSingle) || present(directory / kIndex);
}

TensorSet open_safetensors(const fs::path& directory) {
  TensorSet set;
  if (present(directory / kSingle)) {
    add_file(set, directory / kSingle);
    return set;
  }
  const ShardIndex index = read_shard_index(directory / kIndex);
  for (const std::string& file : index.files) add_file(set, directory / file);
  check_agreement(index, set);
  return set;
}

}  // namespace stagecoach
