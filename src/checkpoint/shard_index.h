// The index of a sharded Hugging Face checkpoint: which of the directory's files holds which tensor
// (model.safetensors.index.json, pytorch_model.bin.index.json).
#pragma once

#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "checkpoint/tensor_set.h"

namespace stagecoach {

struct ShardIndex {
  std::filesystem::path path;
  std::map<std::string, std::string> file_of;  // by tensor
  std::set<std::string> files;                 // plain names, all of them there
};

// Throws data_error for names that reach out of the directory and for missing shards.
ShardIndex read_shard_index(const std::filesystem::path& path);

// Every tensor stands in the shard that the index names, and the index names every tensor.
void check_agreement(const ShardIndex& index, const TensorSet& set);

// Throws data_error when another file of the set holds a tensor of that name.
void add_tensor(TensorSet& set, const std::string& name, StoredTensor tensor);

}  // namespace stagecoach
