// Opens a layer-wise store and reads parts of it. Thread-safe after construction.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "base/file.h"
#include "store/manifest.h"

namespace stagecoach {

enum class VerifyMode : std::uint8_t { kAlways, kFirst, kOff };

class LayerStore {
 public:
  // Throws data_error when `root` holds no complete store of a version that this build knows.
  explicit LayerStore(std::filesystem::path root);

  const std::filesystem::path& root() const { return root_; }
  const Manifest& manifest() const { return manifest_; }

  // Slab of a layer; throws data_error naming the missing slab and how to get it.
  const SlabEntry& layer_slab(std::int64_t layer) const;
  const SlabEntry& embedding_slab() const;
  const SlabEntry& head_slab() const;

  // Reads the extent of `part` into `destination` (part.bytes long) and, if asked, checks it.
  // A wrong byte is a data_error that names file, part and the command that repairs it.
  void read_part(const SlabEntry& slab, const PartEntry& part, std::span<std::byte> destination,
                 bool verify) const;

 private:
  const File& open_slab(const SlabEntry& slab) const;
  std::filesystem::path root_;
  Manifest manifest_;
};

// Views of a part's tensors inside a buffer that holds its extent, by role (absent: null view).
struct PartTensors {
  TensorView views[kTensorRoles];
  const TensorView& operator[](TensorRole role) const { return views[static_cast<int>(role)]; }
};
PartTensors part_tensors(const PartEntry& part, const std::byte* extent);

// Every problem found in a store, one line each, empty when it is whole. Reads every byte.
std::vector<std::string> verify_store(const LayerStore& store);

}  // namespace stagecoach
