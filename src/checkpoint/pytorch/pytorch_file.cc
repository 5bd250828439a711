#include "checkpoint/pytorch/pytorch_file.h"

#include <algorithm>
#include <array>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "checkpoint/foreign_text.h"
#include "checkpoint/pytorch/torch_tensor.h"
#include "checkpoint/pytorch/unpickler.h"
#include "checkpoint/pytorch/zip_archive.h"
#include "checkpoint/shard_index.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kMaxPickleBytes = 64 << 20;
constexpr std::string_view kZipMagic = "PK\x03\x04";
// A whole pickle: protocol 2, the number 0x1950a86a20f9469cfc6c, stop.
constexpr std::string_view kStreamMagic =
    "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";
constexpr std::int64_t kStreamVersion = 1001;
constexpr std::string_view kTarMagic = "ustar";
constexpr std::int64_t kTarMagicAt = 257;
// What a tensor may take in memory beyond what the file holds: a tied matrix under two names, not a
// petabyte of stride 0.
constexpr std::int64_t kMaxExpansion = 2;
// Where training scripts put a state_dict among other things.
constexpr std::array<std::string_view, 4> kWrappers = {"state_dict", "model", "module",
                                                       "model_state_dict"};

constexpr const char* kSaveAgain =
    "load it with PyTorch and write it again: torch.save(model.state_dict(), 'pytorch_model.bin')";

std::string read_string(const File& file, std::int64_t offset, std::int64_t bytes) {
  std::string text(static_cast<std::size_t>(bytes), '\0');
  file.read_at(offset, std::as_writable_bytes(std::span(text)));
  return text;
}

// The main pickle, with the bytes that it refers to, and where the storages lie.
struct Content {
  std::string bytes;
  Pickle pickle;
  TorchFile file;
};

// The archive's one data.pkl; everything else of the checkpoint stands in the same folder.
std::string archive_folder(const std::map<std::string, ZipMember>& members,
                           const std::string& where) {
  constexpr std::string_view kSuffix = "/data.pkl";
  std::string folder;
  for (const auto& [name, member] : members) {
    if (!name.ends_with(kSuffix) || name.find('/') != name.size() - kSuffix.size()) continue;
    if (!folder.empty())
      throw data_error(fmt::format("{} holds two checkpoints, {} and {}", where, quote_name(folder),
                                   quote_name(name)));
    folder = name.substr(0, name.size() - kSuffix.size() + 1);
  }
  if (folder.empty())
    throw data_error(
        fmt::format("{} is a ZIP archive without FOLDER/data.pkl: it was not written "
                    "by torch.save",
                    where));
  if (members.contains(folder + "constants.pkl"))
    throw data_error(fmt::format("{} is a TorchScript program, expected a state_dict", where),
                     kSaveAgain);
  return folder;
}

void read_archive(Content& content) {
  const File& file = *content.file.file;
  const std::string& where = content.file.where;
  const std::map<std::string, ZipMember> members = read_zip_directory(file);
  const std::string folder = archive_folder(members, where);
  const auto text_of = [&](const std::string& name, std::int64_t limit) {
    const ZipMember& member = members.at(folder + name);
    if (member.bytes > limit)
      throw data_error(fmt::format("{}: {} has {} bytes, expected at most {}", where, name,
                                   member.bytes, limit));
    return read_string(file, member.offset, member.bytes);
  };
  if (members.contains(folder + "byteorder")) {
    const std::string order = text_of("byteorder", 16);
    if (order != "little")
      throw data_error(
          fmt::format("{}: its byte order is {}, expected \"little\"", where, quote_name(order)),
          kSaveAgain);
  }
  content.bytes = text_of("data.pkl", kMaxPickleBytes);
  content.pickle = unpickle(content.bytes, {.where = where, .callables = torch_callables()});
  const std::string data = folder + "data/";
  for (auto it = members.lower_bound(data); it != members.end() && it->first.starts_with(data);
       ++it)
    content.file.storages[it->first.substr(data.size())] = {.offset = it->second.offset,
                                                            .bytes = it->second.bytes};
}

// The value of a string key; null if there is none.
const PickleValue* find_key(const PickleNode& dict, std::string_view key) {
  for (std::size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const PickleNode* name = as_node(dict.items[i], PickleKind::kString);
    if (name != nullptr && name->text == key) return &dict.items[i + 1];
  }
  return nullptr;
}

// After its magic, the old stream is four pickles (version, the writer's machine, the object, the
// storages' keys), then per key the number of elements and the elements.
class StreamReader {
 public:
  explicit StreamReader(Content& content)
      : content_(content),
        file_(*content.file.file),
        where_(content.file.where),
        position_(kStreamMagic.size()) {}
  void read();

 private:
  Pickle next() {
    Pickle pickle = unpickle(std::string_view(content_.bytes).substr(position_),
                             {.where = where_, .callables = torch_callables()});
    position_ += pickle.bytes;
    return pickle;
  }
  void check_writer();
  std::map<std::string, TorchStorage> described() const;
  void read_storages(const Pickle& keys);

  Content& content_;
  const File& file_;
  std::string where_;
  std::size_t position_;
};

void StreamReader::check_writer() {
  const Pickle version = next();
  if (version.root != PickleValue(kStreamVersion))
    throw data_error(fmt::format("{}: the stream's version is not {}", where_, kStreamVersion));
  const Pickle machine = next();
  const PickleNode* dict = as_node(machine.root, PickleKind::kDict);
  const PickleValue* little = dict == nullptr ? nullptr : find_key(*dict, "little_endian");
  if (little == nullptr || *little != PickleValue(true))
    throw data_error(fmt::format("{}: it should say that its numbers are little-endian", where_),
                     kSaveAgain);
}

std::map<std::string, TorchStorage> StreamReader::described() const {
  std::map<std::string, TorchStorage> storages;
  for (const PickleNode* persistent : content_.pickle.persistent) {
    TorchStorage storage = parse_storage(*persistent, where_);
    const auto [it, fresh] = storages.emplace(storage.key, storage);
    if (!fresh && (it->second.type != storage.type || it->second.elements != storage.elements))
      throw data_error(
          fmt::format("{}: storage {} is described in two ways", where_, quote_name(storage.key)));
  }
  return storages;
}

void StreamReader::read_storages(const Pickle& keys) {
  const std::map<std::string, TorchStorage> expected = described();
  const PickleNode* list = as_node(keys.root, PickleKind::kList);
  if (list == nullptr || list->items.size() != expected.size())
    throw data_error(
        fmt::format("{}: the list of storages should name {}", where_, expected.size()));
  const std::int64_t size = file_.size();
  auto offset = static_cast<std::int64_t>(position_);
  for (const PickleValue& item : list->items) {
    const PickleNode* key = as_node(item, PickleKind::kString);
    const auto found = expected.find(key == nullptr ? std::string() : std::string(key->text));
    if (found == expected.end() || content_.file.storages.contains(found->first))
      throw data_error(
          fmt::format("{}: the list of storages names one that no tensor uses, or "
                      "one twice",
                      where_));
    const TorchStorage& storage = found->second;
    std::int64_t elements = -1;
    if (size - offset >= 8) file_.read_at(offset, std::as_writable_bytes(std::span(&elements, 1)));
    offset += 8;
    if (elements != storage.elements || storage.bytes() > size - offset)
      throw data_error(
          fmt::format("{}: storage {} should have {} elements of {} bytes at byte {}", where_,
                      quote_name(storage.key), storage.elements, storage.element_bytes, offset),
          "the file is truncated or damaged: fetch it again");
    content_.file.storages[storage.key] = {.offset = offset, .bytes = storage.bytes()};
    offset += storage.bytes();
  }
  if (offset != size)
    throw data_error(fmt::format("{}: {} bytes follow the last storage", where_, size - offset),
                     "the file is damaged or holds several objects: fetch it again");
}

void StreamReader::read() {
  // Nothing says where the pickles end.
  content_.bytes = read_string(file_, 0, std::min(file_.size(), kMaxPickleBytes));
  check_writer();
  content_.pickle = next();
  const Pickle keys = next();
  read_storages(keys);
}

bool is_tensor_dict(const PickleNode& dict) {
  std::size_t tensors = 0;
  for (std::size_t i = 1; i < dict.items.size(); i += 2)
    tensors += is_tensor(dict.items[i]) ? 1 : 0;
  return tensors > 0 && tensors * 2 >= dict.items.size() / 2;
}

// The dict of tensors: the top level, or the one that a training script put into it.
const PickleNode& find_state_dict(const PickleValue& root, const std::string& where) {
  const PickleNode* top = as_node(root, PickleKind::kDict);
  if (top == nullptr)
    throw data_error(fmt::format("{}: it should hold a dict of tensors", where), kSaveAgain);
  if (is_tensor_dict(*top)) return *top;
  const PickleNode* only = nullptr;
  std::string names;
  for (std::size_t i = 0; i + 1 < top->items.size(); i += 2) {
    const PickleNode* key = as_node(top->items[i], PickleKind::kString);
    const PickleNode* dict = as_node(top->items[i + 1], PickleKind::kDict);
    if (key != nullptr && names.size() < 200)
      names += (names.empty() ? "" : ", ") + quote_name(key->text);
    if (key == nullptr || dict == nullptr || !is_tensor_dict(*dict)) continue;
    if (std::find(kWrappers.begin(), kWrappers.end(), key->text) == kWrappers.end()) continue;
    if (only != nullptr && only != dict)
      throw data_error(fmt::format("{}: it holds several dicts of tensors among {}", where, names),
                       kSaveAgain);
    only = dict;
  }
  if (only != nullptr) return *only;
  throw data_error(
      fmt::format("{}: it should hold a dict of tensors, by itself or as {}; found {}", where,
                  fmt::join(kWrappers, ", "), names.empty() ? "nothing" : names),
      kSaveAgain);
}

void add_tensors(TensorSet& set, const Content& content) {
  const std::string& where = content.file.where;
  const PickleNode& dict = find_state_dict(content.pickle.root, where);
  const std::int64_t limit = content.file.file->size() * kMaxExpansion;  // files end below 2⁶²
  std::int64_t total = 0;
  std::set<std::string_view> names;
  for (std::size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const PickleNode* key = as_node(dict.items[i], PickleKind::kString);
    if (key == nullptr) throw data_error(fmt::format("{}: tensors' names should be text", where));
    if (!names.insert(key->text).second)
      throw data_error(fmt::format("{}: tensor {} stands twice", where, quote_name(key->text)));
    if (!is_tensor(dict.items[i + 1])) {
      spdlog::warn("{}: {} is not a tensor: ignored", where, quote_name(key->text));
      continue;
    }
    const std::string name(key->text);
    StoredTensor tensor = rebuild_tensor(dict.items[i + 1], content.file, name);
    std::int64_t bytes = tensor.format && tensor.bytes > 0 ? block_shape(*tensor.format).bytes : 0;
    bool overflow = false;
    for (const std::int64_t dimension : tensor.shape)
      overflow = overflow || __builtin_mul_overflow(bytes, dimension, &bytes);
    if (overflow || __builtin_add_overflow(total, bytes, &total) || total > limit)
      throw data_error(
          fmt::format("{}: tensors up to {} would take more than {} bytes, {} times the file",
                      where, quote_name(name), limit, kMaxExpansion),
          "tensors that share or repeat elements are only read up to there: load the file with "
          "PyTorch and save it with contiguous tensors");
    add_tensor(set, name, std::move(tensor));
  }
}

Error unknown_container(const File& file, std::string_view head) {
  const std::string where = file.path().string();
  if (head.size() > kTarMagicAt && head.substr(kTarMagicAt).starts_with(kTarMagic))
    return data_error(
        fmt::format("{} is a tar archive of a PyTorch older than 0.1.10, which is not supported",
                    where),
        kSaveAgain);
  if (head.starts_with("version https://git-lfs"))
    return data_error(fmt::format("{} is a Git LFS pointer, not the file itself", where),
                      "fetch it with: git lfs pull");
  return data_error(fmt::format("{} was not written by torch.save: it begins with neither {} nor "
                                "the magic number of PyTorch before 1.6",
                                where, quote_name("PK\\3\\4")),
                    "fetch the file again");
}

}  // namespace

void add_pytorch_file(TensorSet& set, const std::filesystem::path& path) {
  set.files.push_back(std::make_unique<File>(File::open_read(path)));
  const File& file = *set.files.back();
  Content content{.bytes = {}, .pickle = {}, .file = {&file, {}, path.string()}};
  const std::string head = read_string(file, 0, std::min<std::int64_t>(file.size(), 512));
  if (head.starts_with(kZipMagic)) {
    read_archive(content);
  } else if (head.starts_with(kStreamMagic)) {
    StreamReader(content).read();
  } else {
    throw unknown_container(file, head);
  }
  add_tensors(set, content);
  set.identity +=
      fmt::format("{}, pickle {}", file_identity(file),
                  hash_to_hex(xxh3(as_bytes(content.bytes).first(content.pickle.bytes))));
}

}  // namespace stagecoach
