// One file that torch.save wrote: a ZIP archive (PyTorch 1.6 and later) or the older stream of
// pickles and storages. Nothing in it is executed (unpickler.h).
#pragma once

#include <filesystem>

#include "checkpoint/tensor_set.h"

namespace stagecoach {

// Adds the tensors of the file's state_dict: the top level, or what stands there under
// "state_dict", "model" or "module". Reads no elements. Throws data_error.
void add_pytorch_file(TensorSet& set, const std::filesystem::path& path);

}  // namespace stagecoach
