#include "pipeline/pass_checkpoint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <regex>

#include "base/byte_size.h"
#include "base/error.h"
#include "base/json.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little,
              "checkpoint files are written for little-endian machines");

constexpr char kMagic[8] = {'S', 'C', 'H', 'E', 'C', 'K', 'P', 'T'};
constexpr std::uint32_t kVersion = 2;  // 1 counted windows, of one plan
constexpr const char* kIdentityFile = "checkpoint.json";
constexpr const char* kLaunchFile = "launch";
constexpr std::int64_t kMaxIdentityBytes = 1 << 20;
constexpr std::int64_t kBlock = std::int64_t{1} << 20;

Json to_json(const CheckpointIdentity& identity) {
  Json fields = Json::object();
  for (const auto& [name, value] : identity) fields[name] = value;
  return {{"format", "stagecoach-checkpoint"}, {"version", kVersion}, {"of", fields}};
}

// In what the plan of a checkpoint differs. An older one says nothing of it.
std::string plan_differences(const JsonObject& of, const CheckpointIdentity& identity) {
  std::string text;
  for (const auto& [name, expected] : identity) {
    if (!name.starts_with(kPlanDetail) || !of.has(name.c_str())) continue;
    const std::string found = of.string(name.c_str());
    if (found != expected)
      text += fmt::format("{}{} expected {}, found {}", text.empty() ? "" : "; ",
                          name.substr(kPlanDetail.size()), expected, found);
  }
  return text.empty() ? "look at --micro-batch, --windows, --rounds, --wire, the number of ranks, "
                        "their memory and what computes"
                      : text;
}

// False where it is of another plan, and may go.
bool fits_identity(const fs::path& file, const CheckpointIdentity& identity, bool any_plan) {
  const Json json = read_json_file(file, kMaxIdentityBytes);
  const JsonObject object(json, file.string());
  if (object.string("format") != "stagecoach-checkpoint" || object.integer("version") != kVersion)
    throw data_error(
        fmt::format("{} is not a checkpoint of this version of Stagecoach", file.string()),
        "another --checkpoint DIR");
  const JsonObject of = object.object("of");
  for (const auto& [name, expected] : identity) {
    const std::string found = of.has(name.c_str()) ? of.string(name.c_str()) : "nothing";
    if (found == expected || name.starts_with(kPlanDetail)) continue;
    if (any_plan && (name == "plan" || name == "instruction set")) return false;
    // Files call it so since there were only processors.
    const std::string what = name == "instruction set" ? "processor or GPU" : name;
    throw data_error(
        fmt::format("the checkpoint in {} belongs to another {}: {}", file.parent_path().string(),
                    what,
                    name == "plan" ? plan_differences(of, identity)
                                   : fmt::format("expected {}, found {}", expected, found)),
        "go on with the command that made it, or use another --checkpoint DIR");
  }
  return true;
}

// Ranks may share the folder, and write the same text.
void write_shared(const fs::path& file, const std::string& text) {
  const fs::path temporary = file.parent_path() / unique_name(file.filename().string());
  File draft = File::create(temporary);
  draft.append(as_bytes(text));
  draft.close_synced();
  rename_synced(temporary, file);
}

// Files of values in the folder, unfinished ones too, with the layers that a finished hidden state
// is after; 0: it is none.
template <typename Visit>
void for_each_kept(const fs::path& folder, Visit visit) {
  const std::regex names("layers?-([0-9]{3,6})\\.(hidden|kv)(\\.part)?");
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    std::smatch parts;
    if (!std::regex_match(name, parts, names)) continue;
    visit(*entry, parts[2] == "hidden" && !parts[3].matched ? std::stoll(parts[1]) : 0);
  }
}

// The pages that a micro-batch writes to, in the order in which they are kept.
template <typename Visit>
void for_each_page(const MicroBatch& batch, Visit visit) {
  for (const TokenRun& run : batch.runs)
    for (std::int64_t page = run.position / kKvPageTokens;
         page * kKvPageTokens < run.position + run.count(); ++page)
      visit(run.sequence, page);
}

}  // namespace

struct PassCheckpoint::Header {
  char magic[8];
  std::uint32_t version, kind;
  std::uint64_t identity, pass;
  std::int64_t number, bytes;
  std::uint64_t hash, zero;
};

PassCheckpoint::PassCheckpoint(fs::path folder, const CheckpointIdentity& identity,
                               std::uint64_t pass, std::int64_t width, const std::string& holder,
                               CheckpointCare care)
    : folder_(std::move(folder)), pass_(pass), width_(width), care_(care) {
  static_assert(sizeof(Header) == 64);
  check_writable(folder_);
  lock_.emplace(
      FileLock::of_file(folder_ / (holder + ".lock"),
                        fmt::format("another job is keeping its values in {}", folder_.string())));
  const std::string text = to_json(identity).dump(1) + "\n";
  CheckpointIdentity compared = identity;
  std::erase_if(compared, [](const auto& field) { return field.first.starts_with(kPlanDetail); });
  identity_ = xxh3(as_bytes(to_json(compared).dump(1) + "\n"));
  const fs::path file = folder_ / kIdentityFile;
  std::error_code ignored;
  const bool there = fs::exists(file, ignored);
  const bool fits = there && fits_identity(file, identity, is_of_launch());
  if (there && !fits) discard();
  mark_launch();
  if (!fits) write_shared(file, text);
}

bool PassCheckpoint::is_of_launch() const {
  const fs::path file = folder_ / kLaunchFile;
  std::error_code ignored;
  return !care_.launch.empty() && fs::exists(file, ignored) &&
         read_text_file(file, kMaxIdentityBytes) == care_.launch + "\n";
}

void PassCheckpoint::mark_launch() const {
  if (!care_.launch.empty() && !is_of_launch())
    write_shared(folder_ / kLaunchFile, care_.launch + "\n");
}

void PassCheckpoint::discard() {
  for_each_kept(folder_, [this](const fs::directory_entry& file, std::int64_t layers) {
    discarded_ = std::max(discarded_, layers);
    std::error_code ignored;  // of another plan they count as not there
    fs::remove(file.path(), ignored);
  });
}

void PassCheckpoint::require_room(std::int64_t bytes) const {
  std::error_code error;
  const fs::space_info space = fs::space(folder_, error);
  if (error) return;
  auto room = static_cast<std::int64_t>(space.available);
  for_each_kept(folder_, [&room](const fs::directory_entry& file, std::int64_t) {
    std::error_code gone;
    const std::uintmax_t size = file.file_size(gone);
    if (!gone) room += static_cast<std::int64_t>(size);
  });
  if (room >= bytes) return;
  throw resource_error(fmt::format("{}: no room for a checkpoint: it takes {}, {} are free",
                                   folder_.string(), format_bytes(bytes), format_bytes(room)),
                       "free some space, or use another --checkpoint DIR");
}

fs::path PassCheckpoint::path(const Key& key) const {
  return folder_ / (key.first == Kind::kHidden ? fmt::format("layers-{:03}.hidden", key.second)
                                               : fmt::format("layer-{:03}.kv", key.second));
}

std::optional<PassCheckpoint::Header> PassCheckpoint::header(const Key& key) const {
  const fs::path file_path = path(key);
  std::error_code ignored;
  if (!fs::exists(file_path, ignored)) return std::nullopt;
  const File file = File::open_read(file_path);
  Header found{};
  if (file.size() < static_cast<std::int64_t>(sizeof(found))) return std::nullopt;
  file.read_at(0, std::as_writable_bytes(std::span(&found, 1)));
  const bool ours =
      std::memcmp(found.magic, kMagic, sizeof(kMagic)) == 0 && found.version == kVersion &&
      found.kind == static_cast<std::uint32_t>(key.first) && found.number == key.second &&
      found.identity == identity_ && found.pass == pass_ &&
      found.bytes == file.size() - static_cast<std::int64_t>(sizeof(found));
  return ours ? std::optional(found) : std::nullopt;
}

bool PassCheckpoint::has_hidden(std::int64_t layers) const {
  return header({Kind::kHidden, layers}).has_value();
}
bool PassCheckpoint::has_kv(std::int64_t layer) const {
  return header({Kind::kKv, layer}).has_value();
}

void PassCheckpoint::append(const Key& key, const MicroBatch& batch,
                            std::span<const std::byte> bytes) {
  auto draft = drafts_.find(key);
  if (draft == drafts_.end()) {
    // Micro-batches come in order: the first one begins the file.
    STAGECOACH_CHECK(batch.pass.row == 0);
    fs::path temporary = path(key);
    temporary += ".part";
    draft = drafts_.emplace(key, Draft{File::create(temporary), {}, 0}).first;
    const Header empty{};
    draft->second.file.append(std::as_bytes(std::span(&empty, 1)));
  }
  draft->second.file.append(bytes);
  draft->second.hash.update(bytes);
  draft->second.bytes += static_cast<std::int64_t>(bytes.size());
}

void PassCheckpoint::finish(const Key& key, const MicroBatch& batch) {
  if (!batch.pass.last) return;
  auto node = drafts_.extract(key);
  Draft& draft = node.mapped();
  Header header{.magic = {},
                .version = kVersion,
                .kind = static_cast<std::uint32_t>(key.first),
                .identity = identity_,
                .pass = pass_,
                .number = key.second,
                .bytes = draft.bytes,
                .hash = draft.hash.digest(),
                .zero = 0};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  draft.file.write_at(0, std::as_bytes(std::span(&header, 1)));
  const fs::path temporary = draft.file.path();
  draft.file.close_synced();
  rename_synced(temporary, path(key));
}

void PassCheckpoint::keep_hidden(std::int64_t layers, const MicroBatch& batch,
                                 std::span<const float> hidden) {
  STAGECOACH_CHECK(static_cast<std::int64_t>(hidden.size()) == total_rows(batch.runs) * width_);
  const Key key{Kind::kHidden, layers};
  append(key, batch, std::as_bytes(hidden));
  finish(key, batch);
  if (!care_.newest || !batch.pass.last) return;
  kept_.push_back(layers);
  drop_older();
}

// Whoever shares the folder needs none of them either: two that are newer are whole.
void PassCheckpoint::drop_older() {
  if (kept_.size() < 2) return;
  for (std::int64_t layers = 1; layers < kept_[kept_.size() - 2]; ++layers) drop_hidden(layers);
}

void PassCheckpoint::drop_hidden(std::int64_t layers) const {
  std::error_code ignored;
  fs::remove(path({Kind::kHidden, layers}), ignored);
}

std::string PassCheckpoint::damage_of_hidden(std::int64_t layers) const try {
  open_checked({Kind::kHidden, layers}, std::numeric_limits<std::int64_t>::max());
  return {};
} catch (const Error& error) {
  if (error.kind() != ErrorKind::kData) throw;
  return error.what();
}

// The pages that the micro-batch has written to. One that the next micro-batch fills further is
// written again, and restored in the same order.
void PassCheckpoint::keep_kv(std::int64_t layer, const MicroBatch& batch, KvCache& kv) {
  const Key key{Kind::kKv, layer};
  std::vector<std::byte> host(static_cast<std::size_t>(kv.page_bytes()));
  for_each_page(batch, [&](SequenceId sequence, std::int64_t page) {
    kv.get_page(layer, sequence, page, host);
    append(key, batch, host);
  });
  finish(key, batch);
}

PassCheckpoint::Restored PassCheckpoint::open_checked(const Key& key,
                                                      std::int64_t most_bytes) const {
  const std::optional<Header> found = header(key);
  const std::string name = path(key).string();
  if (!found) throw data_error(fmt::format("{} has gone since the job began", name));
  if (found->bytes > most_bytes)  // before all of it is read
    throw data_error(
        fmt::format("{} has {} bytes, this pass takes {} at most", name, found->bytes, most_bytes),
        "delete it: the same command then goes on one window earlier");
  Restored restored{.file = File::open_read(path(key)), .bytes = found->bytes, .used = 0};
  StreamingHash hash;
  std::vector<std::byte> block(static_cast<std::size_t>(std::min(kBlock, found->bytes)));
  for (std::int64_t at = 0; at < found->bytes; at += kBlock) {
    const auto part =
        std::span(block).first(static_cast<std::size_t>(std::min(kBlock, found->bytes - at)));
    restored.file.read_at(static_cast<std::int64_t>(sizeof(Header)) + at, part);
    hash.update(part);
  }
  if (hash.digest() != found->hash)
    throw data_error(fmt::format("{} is damaged: expected checksum {}, found {}", name,
                                 hash_to_hex(found->hash), hash_to_hex(hash.digest())),
                     "delete it: the same command then goes on one window earlier");
  return restored;
}

void PassCheckpoint::take(const Key& key, const MicroBatch& batch,
                          std::span<std::byte> destination) {
  auto restored = restored_.find(key);
  if (restored == restored_.end()) {
    // Of keys and values: two pages a row at the very most, where micro-batches are of one row.
    const std::int64_t each = key.first == Kind::kHidden
                                  ? width_ * static_cast<std::int64_t>(sizeof(float))
                                  : 2 * static_cast<std::int64_t>(destination.size());
    restored = restored_.emplace(key, open_checked(key, batch.pass.rows * each)).first;
  }
  Restored& source = restored->second;
  if (source.bytes - source.used < static_cast<std::int64_t>(destination.size()))
    throw data_error(fmt::format("{} is too short: it has {} bytes for this pass",
                                 path(key).string(), source.bytes),
                     "go on with the command that made it, or use another --checkpoint DIR");
  source.file.read_at(static_cast<std::int64_t>(sizeof(Header)) + source.used, destination);
  source.used += static_cast<std::int64_t>(destination.size());
}

void PassCheckpoint::end_restore(const Key& key, const MicroBatch& batch) {
  if (!batch.pass.last) return;
  const auto restored = restored_.extract(key);
  if (restored.empty() || restored.mapped().used == restored.mapped().bytes) return;
  throw data_error(fmt::format("{} has {} bytes, this pass takes {}", path(key).string(),
                               restored.mapped().bytes, restored.mapped().used),
                   "go on with the command that made it, or use another --checkpoint DIR");
}

void PassCheckpoint::restore_hidden(std::int64_t layers, const MicroBatch& batch,
                                    std::span<float> hidden) {
  const Key key{Kind::kHidden, layers};
  take(key, batch, std::as_writable_bytes(hidden));
  end_restore(key, batch);
}

void PassCheckpoint::restore_kv(std::int64_t layer, const MicroBatch& batch, KvCache& kv) {
  const Key key{Kind::kKv, layer};
  std::vector<std::byte> host(static_cast<std::size_t>(kv.page_bytes()));
  for_each_page(batch, [&](SequenceId sequence, std::int64_t page) {
    take(key, batch, host);
    kv.set_page(layer, sequence, page, host);
  });
  end_restore(key, batch);
}

File PassCheckpoint::open_hidden(std::int64_t layers) const {
  return File::open_read(path({Kind::kHidden, layers}));
}

// Its checksum is compared when it is read.
void PassCheckpoint::adopt_hidden(std::int64_t layers,
                                  const std::function<std::vector<std::byte>()>& next) const {
  const Key key{Kind::kHidden, layers};
  fs::path temporary = path(key);
  temporary += ".part";
  File draft = File::create(temporary);
  for (std::vector<std::byte> block = next(); !block.empty(); block = next()) draft.append(block);
  draft.close_synced();
  rename_synced(temporary, path(key));
  if (!header(key))
    throw data_error(
        fmt::format("{}: what another rank has sent is no part of this pass", path(key).string()),
        "run the same command again");
}

}  // namespace stagecoach
