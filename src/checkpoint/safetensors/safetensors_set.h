#pragma once

#include <filesystem>

#include "checkpoint/tensor_set.h"

namespace stagecoach {

// Whether the directory holds model.safetensors or its index.
bool holds_safetensors(const std::filesystem::path& directory);

// All tensors of model.safetensors, or of the shards that its index names. Reads every header.
// Throws data_error for an index that does not agree with its shards.
TensorSet open_safetensors(const std::filesystem::path& directory);

}  // namespace stagecoach
