#pragma once

#include <filesystem>

#include "checkpoint/tensor_set.h"

namespace stagecoach {

// Whether the directory holds pytorch_model.bin or its index.
bool holds_pytorch(const std::filesystem::path& directory);

// All tensors of pytorch_model.bin, or of the shards that its index names, without the prefixes
// that torch.compile and DistributedDataParallel put before every name. Throws data_error for a
// file that would call anything, or for an index that does not agree with its shards.
TensorSet open_pytorch(const std::filesystem::path& directory);

}  // namespace stagecoach
