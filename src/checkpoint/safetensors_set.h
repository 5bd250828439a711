// All tensors of a Hugging Face directory: model.safetensors, or the shards that its index names.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace stagecoach {

struct FoundTensor {
  const SafetensorsFile* shard;
  const SafetensorsEntry* entry;
};

class SafetensorsSet {
 public:
  // Reads every header. Throws data_error for a directory without safetensors (saying what to
  // convert) and for an index that does not agree with its shards.
  explicit SafetensorsSet(const std::filesystem::path& directory);

  const std::map<std::string, FoundTensor>& tensors() const { return tensors_; }
  const std::vector<std::unique_ptr<SafetensorsFile>>& shards() const { return shards_; }

 private:
  void open_indexed(const std::filesystem::path& index);
  void add_shard(const std::filesystem::path& file);

  std::vector<std::unique_ptr<SafetensorsFile>> shards_;
  std::map<std::string, FoundTensor> tensors_;
};

}  // namespace stagecoach
