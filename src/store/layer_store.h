// Opens a layer-wise store and reads parts of it. Thread-safe after construction.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "store/manifest.h"

namespace stagecoach {

enum class VerifyMode : std::uint8_t { kAlways, kFirst, kOff };

class LayerStore {
 public:
  // Throws data_error when `root` holds no complete store of a version that this build knows. Opens
  // no slab yet: a rank needs only its own.
  explicit LayerStore(std::filesystem::path root);
  LayerStore(LayerStore&&) noexcept;
  ~LayerStore();

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

  // The slab's file, its length and header checked when first opened: for readers with their own
  // way of reading. Open as long as the store is. Throws data_error on a missing or foreign file.
  const File& open_slab(const SlabEntry& slab) const;
  // What to do about a slab that is missing or damaged.
  std::string repair_hint(const SlabEntry& slab) const;

 private:
  struct OpenSlabs;
  std::filesystem::path root_;
  Manifest manifest_;
  std::unique_ptr<OpenSlabs> open_;
};

// Views of a part's tensors inside a buffer that holds its extent, by role (absent: null view).
PartTensors part_tensors(const PartEntry& part, const std::byte* extent);

struct VerifyOptions {
  // bytes done and in total; called often, from the calling thread.
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};
  std::function<bool()> interrupted = {};  // true stops with kInterrupted
};

// Every problem found in a store, one line each, empty when it is whole. Reads every byte.
std::vector<std::string> verify_store(const LayerStore& store, const VerifyOptions& options = {});

// Folders with a complete store: `root` itself, or up to two levels below it, sorted. Several
// versions of a model lie side by side as ROOT/gpt-j/1, ROOT/gpt-j/2. Folders that cannot be read
// are passed over.
std::vector<std::filesystem::path> find_stores(const std::filesystem::path& root);

}  // namespace stagecoach
