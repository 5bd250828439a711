#include "store/layer_store.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "store/slab_format.h"

namespace stagecoach {

namespace fs = std::filesystem;

struct LayerStore::OpenSlabs {
  std::mutex mutex;
  std::map<std::string, File> files;  // nodes stay put: open_slab hands out references
};

LayerStore::LayerStore(fs::path root)
    : root_(std::move(root)),
      manifest_(read_manifest(root_)),
      open_(std::make_unique<OpenSlabs>()) {}
LayerStore::LayerStore(LayerStore&&) noexcept = default;
LayerStore::~LayerStore() = default;

const SlabEntry& LayerStore::layer_slab(std::int64_t layer) const {
  STAGECOACH_CHECK(layer >= 0 && layer < manifest_.spec.num_hidden_layers);
  const int slab = manifest_.layer_slab[static_cast<std::size_t>(layer)];
  if (slab < 0)
    throw data_error(
        fmt::format("{} does not hold layer {}: it was imported for other layers", root_.string(),
                    layer),
        fmt::format("import a store that does: stagecoach import CHECKPOINT STORE --layers "
                    "A:B with A <= {} < B, or all layers (with rounds a rank runs many windows; "
                    "--rounds 1 gives it one)",
                    layer));
  return manifest_.slabs[static_cast<std::size_t>(slab)];
}

const SlabEntry& LayerStore::embedding_slab() const {
  if (manifest_.embedding_slab < 0)
    throw data_error(fmt::format("{} does not hold the embedding", root_.string()),
                     "import a store that does: stagecoach import CHECKPOINT STORE --layers 0:B");
  return manifest_.slabs[static_cast<std::size_t>(manifest_.embedding_slab)];
}

const SlabEntry& LayerStore::head_slab() const {
  if (manifest_.head_slab < 0)
    throw data_error(
        fmt::format("{} does not hold the head", root_.string()),
        fmt::format("import a store that does: stagecoach import CHECKPOINT STORE --layers "
                    "A:{}",
                    manifest_.spec.num_hidden_layers));
  return manifest_.slabs[static_cast<std::size_t>(manifest_.head_slab)];
}

void LayerStore::read_part(const SlabEntry& slab, const PartEntry& part,
                           std::span<std::byte> destination, bool verify) const {
  STAGECOACH_CHECK(static_cast<std::int64_t>(destination.size()) == part.bytes);
  const File& file = open_slab(slab);
  file.read_at(part.offset, destination);
  if (!verify) return;
  const std::uint64_t actual = xxh3(destination);
  if (actual != part.checksum)
    throw data_error(fmt::format("{}: the {} part is damaged: expected checksum {}, found {}",
                                 file.path().string(), part_name(part.kind),
                                 hash_to_hex(part.checksum), hash_to_hex(actual)),
                     repair_hint(slab));
}

const File& LayerStore::open_slab(const SlabEntry& slab) const {
  const std::lock_guard lock(open_->mutex);
  if (const auto found = open_->files.find(slab.file); found != open_->files.end())
    return found->second;
  const fs::path path = root_ / slab.file;
  std::error_code ignored;
  if (!fs::exists(path, ignored))
    throw data_error(fmt::format("{} is missing", path.string()), repair_hint(slab));
  try {
    return open_->files.emplace(slab.file, open_slab_file(path, slab)).first->second;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    throw data_error(error.what(), repair_hint(slab));
  }
}

std::string LayerStore::repair_hint(const SlabEntry& slab) const {
  return fmt::format(
      "copy {} from a PC that has the same store, or import the checkpoint again: "
      "stagecoach import CHECKPOINT STORE (delete {} first)",
      slab.file, root_.string());
}

PartTensors part_tensors(const PartEntry& part, const std::byte* extent) {
  PartTensors tensors{};
  for (const TensorEntry& entry : part.tensors) {
    const TensorSpec& spec = entry.spec;
    tensors.views[static_cast<int>(spec.role)] = {.data = extent + entry.offset,
                                                  .type = spec.type,
                                                  .layout = spec.layout,
                                                  .rows = spec.rows,
                                                  .cols = spec.cols};
  }
  return tensors;
}

std::vector<fs::path> find_stores(const fs::path& root) {
  std::vector<fs::path> stores;
  std::vector<fs::path> level{root};
  for (int depth = 0; depth <= 2; ++depth) {
    std::vector<fs::path> below;
    for (const fs::path& folder : level) {
      std::error_code ignored;
      if (fs::is_regular_file(folder / kManifestFile, ignored)) {
        stores.push_back(folder);
        continue;  // a store holds no stores
      }
      for (fs::directory_iterator it(folder, ignored), end; !ignored && it != end;
           it.increment(ignored)) {
        std::error_code unreadable;
        if (it->is_directory(unreadable)) below.push_back(it->path());
      }
    }
    level = std::move(below);
  }
  std::sort(stores.begin(), stores.end());
  return stores;
}

}  // namespace stagecoach
