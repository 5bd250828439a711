#include "launcher/store_files.h"

#include <fcntl.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <map>
#include <sstream>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "store/slab_format.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizerFolder = "tokenizer";
constexpr std::size_t kReadChunk = std::size_t{1} << 20;

std::optional<std::int64_t> regular_size(const fs::path& file) {
  std::error_code error;
  if (!fs::is_regular_file(file, error)) return std::nullopt;
  const auto size = fs::file_size(file, error);
  if (error) return std::nullopt;
  return static_cast<std::int64_t>(size);
}

bool is_bare_name(std::string_view name) {
  if (name.empty() || name.size() > 128 || name.front() == '.') return false;
  return std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
}

std::uint64_t content_of(const SlabEntry& slab) {
  StreamingHash hash;
  for (const PartEntry& part : slab.parts) {
    const std::array<std::uint64_t, 3> numbers{static_cast<std::uint64_t>(part.offset),
                                               static_cast<std::uint64_t>(part.bytes),
                                               part.checksum};
    hash.update(std::as_bytes(std::span(numbers)));
  }
  return hash.digest();
}

}  // namespace

fs::path path_inside(const fs::path& path, const std::vector<fs::path>& roots) {
  // What is not there yet is resolved by its letters only, which must not lead back.
  const bool plain =
      path.native().find('\0') == std::string::npos &&
      std::none_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; });
  const fs::path resolved = plain ? fs::weakly_canonical(path) : fs::path();
  for (const fs::path& root : roots) {
    const fs::path base = fs::weakly_canonical(root);
    const auto [end, at] =
        std::mismatch(base.begin(), base.end(), resolved.begin(), resolved.end());
    if (plain && path.is_absolute() && end == base.end()) return resolved;
  }
  std::string names;
  for (const fs::path& root : roots) names += (names.empty() ? "" : ", ") + root.string();
  throw usage_error(
      fmt::format("'{}' is not inside a folder that this agent serves: {}", path.string(), names),
      "put the store there, or start the agent with --stores DIR");
}

StoreContents look_into_store(const fs::path& store) {
  StoreContents contents;
  if (fs::exists(store / kJournalFile))
    throw data_error(fmt::format("{}: an import or create into it is not finished", store.string()),
                     "repeat that command; or remove the folder");
  if (fs::exists(store / kManifestFile)) {
    contents.manifest = read_manifest(store);
    for (const SlabEntry& slab : contents.manifest->slabs)
      if (regular_size(store / slab.file) == slab.bytes)
        contents.slabs.push_back({slab.file, slab.bytes});
  }
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(store / kTokenizerFolder, error)) {
    const std::string name = entry.path().filename();
    const auto bytes = regular_size(entry.path());
    if (bytes && is_bare_name(name))
      contents.tokenizer.push_back({fmt::format("{}/{}", kTokenizerFolder, name), *bytes});
  }
  struct statvfs status {};
  if (::statvfs(nearest_existing(store).c_str(), &status) == 0)
    contents.free_bytes =
        static_cast<std::int64_t>(status.f_bavail) * static_cast<std::int64_t>(status.f_frsize);
  return contents;
}

void check_store_file_name(const std::string& name) {
  const std::string_view tokenizer = std::string_view(kTokenizerFolder);
  const std::string_view text = name;
  const bool in_tokenizer = text.starts_with(tokenizer) && text.size() > tokenizer.size() &&
                            text[tokenizer.size()] == '/' &&
                            is_bare_name(text.substr(tokenizer.size() + 1));
  if (!in_tokenizer && !(is_bare_name(text) && text.ends_with(".slab")))
    throw data_error(fmt::format("'{}' is not the name of a store's file", name.substr(0, 128)));
}

std::string slab_problem(const fs::path& path, const SlabEntry& slab, const Advance& advance) try {
  const File file = open_slab_file(path, slab);
  std::vector<std::byte> buffer(kReadChunk);
  for (const PartEntry& part : slab.parts) {
    StreamingHash hash;
    for (std::int64_t at = 0; at < part.bytes;) {
      const auto size = std::min<std::int64_t>(part.bytes - at, kReadChunk);
      const std::span<std::byte> chunk = std::span(buffer).first(static_cast<std::size_t>(size));
      file.read_at(part.offset + at, chunk);
      hash.update(chunk);
      at += size;
      if (advance) advance(size);
    }
    if (hash.digest() != part.checksum)
      return fmt::format("{}: the {} part is damaged: expected checksum {}, found {}",
                         path.string(), part_name(part.kind), hash_to_hex(part.checksum),
                         hash_to_hex(hash.digest()));
  }
  ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
  return {};
} catch (const Error& error) {
  if (error.kind() != ErrorKind::kData && error.kind() != ErrorKind::kResources) throw;
  return error.what();
}

// ---- A slab on its way in ----

SlabDraft::SlabDraft(fs::path store, const SlabEntry& slab)
    : final_(std::move(store) / slab.file),
      partial_(final_.string() + ".partial"),
      notes_(final_.string() + ".chunks"),
      slab_(slab),
      done_(static_cast<std::size_t>((slab.bytes + kChunk - 1) / kChunk), false) {
  const std::string head = fmt::format("{} {}", hash_to_hex(content_of(slab)), slab.bytes);
  if (fs::exists(partial_)) {
    constexpr std::int64_t kMostNotes = std::int64_t{16} << 20;
    // Somebody else's pipe or link is no note.
    std::istringstream notes(regular_size(notes_) && !fs::is_symlink(notes_)
                                 ? read_text_file(notes_, kMostNotes)
                                 : std::string());
    std::string line;
    if (std::getline(notes, line) && line == head)
      for (std::size_t chunk = 0; notes >> chunk;)
        if (chunk < done_.size()) done_[chunk] = true;
  }
  resumed_ = std::find(done_.begin(), done_.end(), true) != done_.end();
  file_ = resumed_ ? File::open_update(partial_) : File::create(partial_);
  if (const int error = ::posix_fallocate(file_->descriptor(), 0, slab.bytes);
      error == ENOSPC || error == EDQUOT)
    throw resource_error(fmt::format("{}: no room for {} bytes", partial_.string(), slab.bytes),
                         "free some space there and run the same command again");
  notes_file_ = File::create(notes_);
  std::string text = head + "\n";
  for (std::size_t chunk = 0; chunk < done_.size(); ++chunk)
    if (done_[chunk]) text += fmt::format("{}\n", chunk);
  notes_file_->append(as_bytes(text));
}

std::vector<std::int64_t> SlabDraft::missing_chunks() const {
  std::vector<std::int64_t> missing;
  for (std::size_t chunk = 0; chunk < done_.size(); ++chunk)
    if (!done_[chunk]) missing.push_back(static_cast<std::int64_t>(chunk));
  return missing;
}

std::int64_t SlabDraft::chunk_bytes(std::int64_t chunk) const {
  return std::min(kChunk, slab_.bytes - chunk * kChunk);
}

std::int64_t SlabDraft::missing_bytes() const {
  std::int64_t bytes = 0;
  for (const std::int64_t chunk : missing_chunks()) bytes += chunk_bytes(chunk);
  return bytes;
}

void SlabDraft::write(std::int64_t chunk, std::span<const std::byte> bytes) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(bytes.size()) == chunk_bytes(chunk));
  file_->write_at(chunk * kChunk, bytes);
  // Begins to write what a page cache would keep until memory is short.
  ::sync_file_range(file_->descriptor(), chunk * kChunk, chunk_bytes(chunk), SYNC_FILE_RANGE_WRITE);
}

void SlabDraft::note(std::int64_t chunk) {
  done_[static_cast<std::size_t>(chunk)] = true;
  notes_file_->append(as_bytes(fmt::format("{}\n", chunk)));
}

void SlabDraft::finish() {
  STAGECOACH_CHECK(missing_chunks().empty());
  file_->close_synced();
  const std::string problem = slab_problem(partial_, slab_, {});
  notes_file_.reset();
  fs::remove(notes_);
  if (!problem.empty()) {
    fs::remove(partial_);
    throw data_error(
        problem + ", after it was copied: its source is damaged, or a disk or network card is",
        "stagecoach doctor JOB.toml says whose copy is whole");
  }
  rename_synced(partial_, final_);
}

// ---- Manifests ----

void check_same_model(const Manifest& ours, const Manifest& theirs, const std::string& where) {
  const auto differs = [&](const std::string& what, const std::string& expected,
                           const std::string& found) {
    throw data_error(fmt::format("{}: holds another model: {}: expected {}, found {}", where, what,
                                 expected, found),
                     "another `store` for this job, or remove that folder");
  };
  if (ours.name != theirs.name || ours.version != theirs.version)
    differs("name", fmt::format("{} {}", ours.name, ours.version),
            fmt::format("{} {}", theirs.name, theirs.version));
  if (ours.weights != theirs.weights) differs("weights", "those of the job's store", "others");
  if (ours.spec != theirs.spec || ours.distinct_layers != theirs.distinct_layers)
    differs("shape", "that of the job's store", "another");
}

Manifest merged(const Manifest& ours, const Manifest& theirs) {
  Manifest all = ours;
  std::map<std::string, int> index;
  for (std::size_t i = 0; i < all.slabs.size(); ++i) index[all.slabs[i].file] = static_cast<int>(i);
  for (const SlabEntry& slab : theirs.slabs) {
    const auto [found, is_new] = index.emplace(slab.file, static_cast<int>(all.slabs.size()));
    if (is_new)
      all.slabs.push_back(slab);
    else
      all.slabs[static_cast<std::size_t>(found->second)] = slab;
  }
  const auto take = [&](int& mine, int other) {
    if (other >= 0) mine = index.at(theirs.slabs[static_cast<std::size_t>(other)].file);
  };
  for (std::size_t layer = 0; layer < all.layer_slab.size(); ++layer)
    take(all.layer_slab[layer], theirs.layer_slab[layer]);
  take(all.embedding_slab, theirs.embedding_slab);
  take(all.head_slab, theirs.head_slab);
  return all;
}

FileLock lock_store(const fs::path& store) {
  constexpr int kTries = 50;  // of a tenth of a second: a check that was interrupted ends soon
  for (int i = 1;; ++i) {
    try {
      return FileLock::of_folder(
          store, fmt::format("{}: somebody else is changing this store", store.string()));
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::kUsage || i == kTries) throw;
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
  }
}

void commit_slabs(const fs::path& store, const Manifest& update) {
  for (const SlabEntry& slab : update.slabs) open_slab_file(store / slab.file, slab);
  Manifest all = update;
  if (fs::exists(store / kManifestFile)) {
    const Manifest ours = read_manifest(store);
    check_same_model(update, ours, store.string());
    all = merged(ours, update);
  }
  write_file_atomically(store / kManifestFile, manifest_text(all));
}

}  // namespace stagecoach
