#include "store/store_writer.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/byte_size.h"
#include "base/error.h"
#include "store/slab_format.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJournalFormat = "stagecoach-import";
constexpr const char* kTokenizerFolder = "tokenizer";
constexpr std::int64_t kMaxJournalBytes = std::int64_t{256} << 20;

// What a writer leaves in a folder that has a journal.
bool is_own_file(const std::string& name) {
  return name == kJournalFile || name == kTokenizerFolder || name.ends_with(".slab") ||
         name.ends_with(".tmp");
}

// Identities hold file names, which need not be UTF-8, and the journal is JSON.
std::string as_utf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace))
      .get<std::string>();
}

// Throws usage_error when the folder holds what no interrupted import left there.
void refuse_foreign_files(const fs::path& root) {
  std::error_code error;
  const bool interrupted = fs::exists(root / kJournalFile, error);
  const std::string temporary_journal = std::string(kJournalFile) + ".tmp";
  fs::directory_iterator it(root, error);
  for (const fs::directory_iterator end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (interrupted ? is_own_file(name) : name == temporary_journal) continue;
    throw usage_error(fmt::format("{} is not empty: found {}", root.string(), name),
                      "choose a new or an empty folder for the store");
  }
  if (error)
    throw resource_error(fmt::format("cannot list {}: {}", root.string(), error.message()));
}

// Pushes one part's tensors into the file, padding included, and fills in the checksums.
void write_part(File& file, PartEntry& part, const StoreWriter::TensorWriter& write_tensor) {
  static constexpr std::byte kZeros[kSlabAlignment] = {};
  StreamingHash part_hash, tensor_hash;
  std::int64_t position = 0;  // in the part
  const auto push = [&](std::span<const std::byte> bytes) {
    file.append(bytes);
    part_hash.update(bytes);
    position += static_cast<std::int64_t>(bytes.size());
  };
  const auto pad_to = [&](std::int64_t offset) {
    push(std::span(kZeros).first(static_cast<std::size_t>(offset - position)));
  };
  for (TensorEntry& tensor : part.tensors) {
    pad_to(tensor.offset);
    tensor_hash.reset();
    const std::int64_t end = tensor.offset + tensor.spec.bytes();
    write_tensor(tensor.spec, [&](std::span<const std::byte> bytes) {
      STAGECOACH_CHECK(static_cast<std::int64_t>(bytes.size()) <= end - position);
      tensor_hash.update(bytes);
      push(bytes);
    });
    STAGECOACH_CHECK(position == end);
    tensor.checksum = tensor_hash.digest();
  }
  pad_to(part.bytes);
  part.checksum = part_hash.digest();
}

}  // namespace

// The folders that this run made, removed again if nothing was put in them.
class StoreWriter::CreatedFolders {
 public:
  explicit CreatedFolders(const fs::path& root) {
    std::error_code error;
    for (fs::path folder = root; !folder.empty() && !fs::exists(folder, error);
         folder = folder.parent_path())
      paths_.push_back(folder);
    for (auto it = paths_.rbegin(); it != paths_.rend(); ++it) {
      fs::create_directory(*it, error);
      if (error)
        throw resource_error(fmt::format("cannot create {}: {}", it->string(), error.message()),
                             "name a folder that you may write");
    }
    if (!fs::is_directory(root, error))
      throw usage_error(fmt::format("{} is not a folder", root.string()),
                        "choose a new or an empty folder for the store");
  }
  ~CreatedFolders() {
    std::error_code not_empty;
    for (const fs::path& path : paths_) fs::remove(path, not_empty);
  }
  CreatedFolders(const CreatedFolders&) = delete;
  CreatedFolders& operator=(const CreatedFolders&) = delete;

 private:
  std::vector<fs::path> paths_;  // innermost first
};

StoreWriter::StoreWriter(fs::path root, const std::string& identity)
    : root_(std::move(root)), identity_(as_utf8(identity)) {
  // "stores/gpt2/" names the folder "stores/gpt2".
  if (root_.filename().empty() && root_.has_parent_path()) root_ = root_.parent_path();
  std::error_code ignored;
  if (fs::exists(root_ / kManifestFile, ignored))
    throw usage_error(fmt::format("{} already holds a complete store", root_.string()),
                      "choose another folder, or delete this one first");
  created_ = std::make_unique<CreatedFolders>(root_);
  // Two imports into one folder would tear each other's slabs.
  lock_.emplace(
      FileLock::of_folder(root_, fmt::format("another process is writing to {}", root_.string())));
  refuse_foreign_files(root_);
  if (fs::exists(root_ / kJournalFile, ignored))
    load_journal();
  else
    save_journal();
}

StoreWriter::~StoreWriter() {
  if (committed_ || !finished_.empty()) return;
  std::error_code ignored;
  fs::remove(root_ / kJournalFile, ignored);
}

std::optional<SlabEntry> StoreWriter::finished(const std::string& file) const {
  const auto found = finished_.find(file);
  if (found == finished_.end()) return std::nullopt;
  try {
    const File slab = File::open_read(root_ / file);
    if (slab.size() != found->second.bytes) return std::nullopt;
    SlabHeader header{};
    slab.read_at(0, header);
    check_slab_header(header, found->second, slab.path().string());
  } catch (const Error& error) {
    // Gone or damaged since: it is written anew.
    if (error.kind() == ErrorKind::kData) return std::nullopt;
    throw;
  }
  return found->second;
}

void StoreWriter::require_space(std::int64_t bytes) const {
  std::error_code error;
  const fs::space_info space = fs::space(root_, error);
  if (error || static_cast<std::uintmax_t>(bytes) <= space.available) return;
  throw resource_error(
      fmt::format("not enough room for {}: expected {} free, found {}", root_.string(),
                  format_bytes(bytes), format_bytes(static_cast<std::int64_t>(space.available))),
      "free some space there and run the same command again, or choose another disk, "
      "a smaller weight type or fewer layers");
}

SlabEntry StoreWriter::write_slab(const std::string& file, SlabKind kind, std::uint64_t id,
                                  const std::vector<TensorSpec>& tensors,
                                  const TensorWriter& write_tensor) {
  SlabEntry slab = plan_slab(file, kind, id, tensors);
  const fs::path temporary = root_ / (file + ".tmp");
  try {
    File out = File::create(temporary);
    out.append(slab_header(slab));
    for (PartEntry& part : slab.parts) write_part(out, part, write_tensor);
    STAGECOACH_CHECK(out.size() == slab.bytes);
    out.close_synced();
    rename_synced(temporary, root_ / file);
    finished_.insert_or_assign(file, slab);
    save_journal();
  } catch (const Error& error) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    if (error.kind() != ErrorKind::kResources) throw;
    throw resource_error(
        error.what(), fmt::format("free some space in {} and run the same command again: it keeps "
                                  "the {} slabs that are finished",
                                  root_.string(), finished_.size()));
  } catch (...) {
    std::error_code ignored;
    fs::remove(temporary, ignored);
    throw;
  }
  return slab;
}

void StoreWriter::add_file(const fs::path& relative, std::string_view content) {
  STAGECOACH_CHECK(relative.is_relative() && *relative.begin() == kTokenizerFolder &&
                   std::find(relative.begin(), relative.end(), "..") == relative.end());
  const fs::path path = root_ / relative;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error)
    throw resource_error(
        fmt::format("cannot create {}: {}", path.parent_path().string(), error.message()),
        "name a folder that you may write");
  write_file_atomically(path, content);
}

void StoreWriter::commit(const Manifest& manifest) {
  const std::string text = manifest_text(manifest);
  const fs::path path = root_ / kManifestFile;
  // What this build could not open again must not come to exist.
  manifest_from_json(parse_json(text, path.string()), path.string());
  write_file_atomically(path, text);
  committed_ = true;
  std::error_code ignored;
  fs::remove(root_ / kJournalFile, ignored);
}

void StoreWriter::discard() {
  std::error_code ignored;
  for (const auto& [file, slab] : finished_) fs::remove(root_ / file, ignored);
  fs::remove_all(root_ / kTokenizerFolder, ignored);
  finished_.clear();
}

void StoreWriter::load_journal() {
  const fs::path path = root_ / kJournalFile;
  const std::string text = read_text_file(path, kMaxJournalBytes);
  const std::string start_over = fmt::format("delete {} and import again", root_.string());
  std::size_t begin = 0;
  try {
    for (int line = 1; begin < text.size(); ++line) {
      const std::size_t end = std::min(text.find('\n', begin), text.size());
      const std::string where = fmt::format("{} line {}", path.string(), line);
      const Json json = parse_json(std::string_view(text).substr(begin, end - begin), where);
      begin = end + 1;
      if (line > 1) {
        SlabEntry slab = slab_from_json(json, where);
        finished_.insert_or_assign(slab.file, std::move(slab));
        continue;
      }
      const JsonObject header(json, where);
      header.only({"format", "version", "identity"});
      if (header.string("format") != kJournalFormat || header.integer("version") != kStoreVersion)
        throw data_error(
            fmt::format("{}: expected {} version {}", where, kJournalFormat, kStoreVersion));
      if (header.string("identity") != identity_)
        throw usage_error(
            fmt::format("{} holds an interrupted import of something else: expected {}, "
                        "found {}",
                        root_.string(), identity_, header.string("identity")),
            fmt::format("finish that one with its own command, choose another folder, or "
                        "delete {}",
                        root_.string()));
    }
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::kData) throw;
    throw data_error(error.what(), start_over);
  }
  if (text.empty()) throw data_error(fmt::format("{} is empty", path.string()), start_over);
}

// Rewritten whole: at a few KiB a slab that is nothing beside the slab, and no crash can tear a
// line.
void StoreWriter::save_journal() const {
  const Json header = {
      {"format", kJournalFormat}, {"version", kStoreVersion}, {"identity", identity_}};
  std::string text = header.dump() + '\n';
  for (const auto& [file, slab] : finished_) text += to_json(slab).dump() + '\n';
  write_file_atomically(root_ / kJournalFile, text);
}

std::string slab_file_name(SlabKind kind, std::int64_t layer) {
  if (kind == SlabKind::kLayer) return fmt::format("layer-{:03}.slab", layer);
  return fmt::format("{}.slab", slab_kind_name(kind));
}

}  // namespace stagecoach
