// PyTorch's tensors as torch.save pickles them: a call that would rebuild a view of a storage
// (https://github.com/pytorch/pytorch, torch/_utils.py), read as where the elements lie.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "checkpoint/pytorch/unpickler.h"
#include "checkpoint/tensor_set.h"

namespace stagecoach {

// Everything that the pickles of tensors call, for unpickle().
std::span<const std::string_view> torch_callables();

// One storage as a pickle's persistent id describes it.
struct TorchStorage {
  std::string key;
  std::string type;                   // "FloatStorage"
  std::int64_t element_bytes = 0;     // 1 for an UntypedStorage, whose tensors have their own type
  std::optional<BlockFormat> format;  // null: not a type that weights can have
  std::int64_t elements = 0;

  std::int64_t bytes() const { return elements * element_bytes; }  // checked not to overflow
};

// `where` names the file in errors, here and below. Throws data_error.
TorchStorage parse_storage(const PickleNode& persistent, const std::string& where);

// The extent of a file that is a storage.
struct StorageExtent {
  std::int64_t offset = 0, bytes = 0;
};

// Where the tensors of one file find their elements.
struct TorchFile {
  const File* file = nullptr;
  std::map<std::string, StorageExtent> storages;  // by key
  std::string where;
};

// Whether the value is a call that makes a tensor or parameter.
bool is_tensor(const PickleValue& value);

// The tensor that `value`, for which is_tensor holds, would be. Storages may be shared and strides
// may be any that stay inside the storage, zero too: the caller bounds what tensors hold in sum.
StoredTensor rebuild_tensor(const PickleValue& value, const TorchFile& file,
                            const std::string& name);

}  // namespace stagecoach
