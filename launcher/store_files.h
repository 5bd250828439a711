// What a host has of a store, and how slabs from other hosts get into it: the agent's side of
// distribution. Only files that a store may hold are read or written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/file_lock.h"
#include "store/manifest.h"

namespace stagecoach {

// `path` if it lies in one of `roots` (or is one), links followed. Throws usage_error.
std::filesystem::path path_inside(const std::filesystem::path& path,
                                  const std::vector<std::filesystem::path>& roots);

struct StoreFile {
  std::string name;  // "layer-003.slab", "tokenizer/tokenizer.json"
  std::int64_t bytes = 0;
};

struct StoreContents {
  std::optional<Manifest> manifest;  // nullopt: there is no store yet
  std::vector<StoreFile> slabs;      // of the manifest, those whose file has the right length
  std::vector<StoreFile> tokenizer;
  std::int64_t free_bytes = 0;  // on its file system
};

// Throws data_error for a broken manifest or an import that is not finished.
StoreContents look_into_store(const std::filesystem::path& store);

// Throws data_error unless `name` is a slab's or a tokenizer file's.
void check_store_file_name(const std::string& name);

// Called with bytes that were read since the last call; throws to stop.
using Advance = std::function<void(std::int64_t bytes)>;

// The first thing that is wrong with a slab's file, empty when every byte is as the manifest says.
std::string slab_problem(const std::filesystem::path& file, const SlabEntry& slab,
                         const Advance& advance);

// One slab on its way in, in FILE.partial, with a note beside it of which chunks are there.
class SlabDraft {
 public:
  static constexpr std::int64_t kChunk = std::int64_t{8} << 20;

  // Goes on where an interrupted one of the same content stopped. Throws resource_error.
  SlabDraft(std::filesystem::path store, const SlabEntry& slab);

  const SlabEntry& slab() const { return slab_; }
  bool resumed() const { return resumed_; }
  std::vector<std::int64_t> missing_chunks() const;  // their numbers
  std::int64_t chunk_bytes(std::int64_t chunk) const;
  std::int64_t missing_bytes() const;
  // Thread-safe for different chunks.
  void write(std::int64_t chunk, std::span<const std::byte> bytes);
  void note(std::int64_t chunk);  // one caller at a time
  // Checks every byte and gives the file its name. Throws data_error for wrong bytes, which are
  // thrown away.
  void finish();

 private:
  std::filesystem::path final_, partial_, notes_;
  SlabEntry slab_;
  std::vector<bool> done_;
  bool resumed_ = false;
  std::optional<File> file_, notes_file_;
};

// Of whoever changes a store: one at a time. Waits a little for another to end. Throws usage_error.
FileLock lock_store(const std::filesystem::path& store);

// Lists in the manifest, besides what it lists now, these slabs of `update`, whose files are there.
// Throws data_error when the store holds another model or a file is missing.
void commit_slabs(const std::filesystem::path& store, const Manifest& update);

// Throws data_error unless both describe the same model in the same weights.
void check_same_model(const Manifest& ours, const Manifest& theirs, const std::string& where);
// What either has; theirs where both have a slab.
Manifest merged(const Manifest& ours, const Manifest& theirs);

}  // namespace stagecoach
