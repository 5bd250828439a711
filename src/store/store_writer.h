// Writes a store so that it exists whole or not at all, and an interrupted writer resumes.
//
//   STORE/import.journal        one JSON line per finished slab; first line: who is being imported
//   STORE/layer-003.slab.tmp    the slab in progress
//   STORE/layer-003.slab        finished, synced, named in the journal
//   STORE/manifest.json         last, by rename; then the journal goes
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/file_lock.h"
#include "base/hash.h"
#include "store/manifest.h"

namespace stagecoach {

class StoreWriter {
 public:
  // `identity` names source and settings; a journal with another identity is refused. An existing
  // complete store is a usage_error and stays untouched; so is a folder with foreign files in it,
  // and one that another process is writing to.
  StoreWriter(std::filesystem::path root, const std::string& identity);
  // Without commit(), finished slabs and journal stay for the next run. When there are none,
  // nothing of this run stays: neither journal nor folders that it made.
  ~StoreWriter();

  // The entry of a slab that an earlier, interrupted run finished, if its file is still whole:
  // right length, right header. Contents were synced before the journal named them.
  std::optional<SlabEntry> finished(const std::string& file) const;

  // Throws resource_error when the disk has less room than `bytes`.
  void require_space(std::int64_t bytes) const;

  // Writes one slab: `tensors` are the catalog's, in order; `write_tensor(tensor, sink)` must push
  // exactly tensor.bytes() bytes into the sink. A full disk is a resource_error.
  using Sink = std::function<void(std::span<const std::byte>)>;
  using TensorWriter = std::function<void(const TensorSpec&, const Sink&)>;
  SlabEntry write_slab(const std::string& file, SlabKind kind, std::uint64_t id,
                       const std::vector<TensorSpec>& tensors, const TensorWriter& write_tensor);

  // Copies a small file (a tokenizer's) into the store.
  void add_file(const std::filesystem::path& relative, std::string_view content);

  // Makes the store exist.
  void commit(const Manifest& manifest);

  // Forgets the finished slabs: for a source that turned out to be bad, whose slabs no later run
  // could use. The destructor then leaves nothing behind.
  void discard();

 private:
  class CreatedFolders;

  void load_journal();
  void save_journal() const;

  std::filesystem::path root_;
  std::string identity_;
  std::unique_ptr<CreatedFolders> created_;  // before lock_: outlives it
  std::optional<FileLock> lock_;
  std::map<std::string, SlabEntry> finished_;
  bool committed_ = false;
};

// "embedding.slab", "layer-003.slab", "head.slab".
std::string slab_file_name(SlabKind kind, std::int64_t layer);

}  // namespace stagecoach
