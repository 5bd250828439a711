#include "checkpoint/gguf/gguf.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "checkpoint/foreign_text.h"
#include "checkpoint/gguf/gguf_types.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "values are read as they lie");

constexpr std::int64_t kMaxHeaderBytes = std::int64_t{512} << 20;
constexpr std::uint64_t kMaxPairs = 100'000, kMaxTensors = 1'000'000;
constexpr std::uint64_t kMaxStringBytes = 16 << 20;  // chat templates are the longest
constexpr std::uint64_t kMaxKeyBytes = 65'535;       // the specification's limit
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::int64_t kDefaultAlignment = 32;
constexpr std::int64_t kMaxSplits = 99'999;  // five digits

// Reads forward from the beginning of a file and keeps what it has read: how long the header is
// shows only when it has been read.
class HeaderReader {
 public:
  explicit HeaderReader(const File& file)
      : file_(file), limit_(std::min(file.size(), kMaxHeaderBytes)) {}

  std::int64_t position() const { return position_; }
  std::int64_t remaining() const { return limit_ - position_; }

  // Moves over `count` bytes and returns where they lie in bytes().
  std::size_t pass(std::uint64_t count, const char* what);
  template <typename T>
  T take(const char* what);
  std::string take_string(std::uint64_t longest, const char* what);
  std::size_t pass_string(std::uint64_t longest, const char* what);

  std::vector<std::byte> take_bytes();
  std::string where() const { return file_.path().string(); }

 private:
  const File& file_;
  std::int64_t limit_, position_ = 0;
  std::vector<std::byte> bytes_;
};

std::size_t HeaderReader::pass(std::uint64_t count, const char* what) {
  if (count > static_cast<std::uint64_t>(remaining())) {
    if (limit_ == kMaxHeaderBytes)
      throw data_error(
          fmt::format("{}: the metadata takes more than {} bytes, which no model's does", where(),
                      kMaxHeaderBytes));
    throw data_error(fmt::format("{}: {} at byte {} needs {} bytes, {} are left", where(), what,
                                 position_, count, remaining()),
                     "the file is truncated or damaged: fetch it again");
  }
  const std::int64_t begin = position_, end = position_ + static_cast<std::int64_t>(count);
  const auto loaded = static_cast<std::int64_t>(bytes_.size());
  if (end > loaded) {
    // Ahead and doubling, so that thousands of small values are few reads.
    const std::int64_t ahead = std::max(2 * loaded, std::int64_t{1} << 16);
    const std::int64_t size = std::min(std::max(end, ahead), limit_);
    bytes_.resize(static_cast<std::size_t>(size));
    file_.read_at(loaded, std::span(bytes_).subspan(static_cast<std::size_t>(loaded)));
  }
  position_ = end;
  return static_cast<std::size_t>(begin);
}

template <typename T>
T HeaderReader::take(const char* what) {
  T value;
  const std::size_t offset = pass(sizeof(T), what);
  std::memcpy(&value, bytes_.data() + offset, sizeof(T));
  return value;
}

std::size_t HeaderReader::pass_string(std::uint64_t longest, const char* what) {
  const auto length = take<std::uint64_t>(what);
  if (length > longest)
    throw data_error(fmt::format("{}: {} at byte {} claims {} bytes, expected at most {}", where(),
                                 what, position_ - 8, length, longest));
  return pass(length, what);
}

std::string HeaderReader::take_string(std::uint64_t longest, const char* what) {
  const std::size_t offset = pass_string(longest, what);
  return {reinterpret_cast<const char*>(bytes_.data() + offset),
          static_cast<std::size_t>(position_) - offset};
}

// What was passed; what was read ahead is dropped.
std::vector<std::byte> HeaderReader::take_bytes() {
  bytes_.resize(static_cast<std::size_t>(position_));
  bytes_.shrink_to_fit();
  return std::move(bytes_);
}

GgufType take_type(HeaderReader& reader, const std::string& key) {
  const auto number = reader.take<std::uint32_t>("a value's type");
  if (number >= kGgufTypes)
    throw data_error(fmt::format("{}: key {} has the unknown type {}, expected 0 to {}",
                                 reader.where(), quote_name(key), number, kGgufTypes - 1));
  return static_cast<GgufType>(number);
}

void pass_elements(HeaderReader& reader, const std::string& key, GgufMetadata::Place& place) {
  const std::size_t size = gguf_type_bytes(place.element);
  const std::uint64_t smallest = size == 0 ? 8 : size;  // a string is its length at least
  if (place.count > static_cast<std::uint64_t>(reader.remaining()) / smallest)
    throw data_error(fmt::format("{}: key {} claims {} values, but only {} bytes follow",
                                 reader.where(), quote_name(key), place.count, reader.remaining()),
                     "the file is truncated or damaged: fetch it again");
  place.offset = static_cast<std::size_t>(reader.position());
  if (size != 0) {
    reader.pass(place.count * size, "an array");
  } else {
    for (std::uint64_t i = 0; i < place.count; ++i) reader.pass_string(kMaxStringBytes, "a string");
  }
}

void take_pair(HeaderReader& reader, GgufMetadata::Places& places) {
  const std::string key = reader.take_string(kMaxKeyBytes, "a key");
  const bool ascii =
      std::all_of(key.begin(), key.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (key.empty() || !ascii)
    throw data_error(fmt::format("{}: a key should be printable ASCII, found {}", reader.where(),
                                 quote_name(key)));
  GgufMetadata::Place place;
  place.element = take_type(reader, key);
  place.array = place.element == GgufType::kArray;
  if (place.array) {
    place.element = take_type(reader, key);
    place.count = reader.take<std::uint64_t>("an array's length");
    if (place.element == GgufType::kArray)
      throw data_error(fmt::format("{}: key {} holds an array of arrays, which is not supported",
                                   reader.where(), quote_name(key)));
  }
  pass_elements(reader, key, place);
  if (!places.emplace(key, place).second)
    throw data_error(fmt::format("{}: key {} is there twice", reader.where(), quote_name(key)));
}

struct TensorInfo {
  std::string name;
  StoredTensor tensor;  // offset from the start of the data
};

std::string tensor_text(const HeaderReader& reader, const std::string& name) {
  return fmt::format("{}: tensor {}", reader.where(), quote_name(name));
}

// Sets type, format and bytes.
void set_type(const std::string& where, std::uint32_t id, StoredTensor& tensor) {
  const GgufTensorType* type = find_gguf_tensor_type(id);
  if (type == nullptr || type->bytes == 0)
    throw data_error(fmt::format("{} has type {}{}, which is not supported; this build reads {}",
                                 where, id, type == nullptr ? "" : fmt::format(" ({})", type->name),
                                 gguf_tensor_type_names()),
                     "import a file in one of these types: Q8_0, Q6_K and Q4_K_M are common");
  tensor.type = type->name;
  tensor.format = type->format;
  std::int64_t elements = 1;
  for (const std::int64_t dimension : tensor.shape)
    if (__builtin_mul_overflow(elements, dimension, &elements))
      throw data_error(fmt::format("{}: shape {} overflows 2^63", where, shape_text(tensor.shape)));
  if (tensor.shape.back() % type->elements != 0)
    throw data_error(fmt::format("{} has rows of {} elements, expected a multiple of {}'s {}",
                                 where, tensor.shape.back(), type->name, type->elements));
  if (__builtin_mul_overflow(elements / type->elements, type->bytes, &tensor.bytes))
    throw data_error(
        fmt::format("{}: shape {} overflows 2^63 bytes", where, shape_text(tensor.shape)));
}

TensorInfo take_tensor_info(HeaderReader& reader) {
  TensorInfo info;
  info.name = reader.take_string(kMaxKeyBytes, "a tensor's name");
  if (info.name.empty() || !is_valid_utf8(info.name))
    throw data_error(fmt::format("{}: a tensor's name should be UTF-8 text, found {}",
                                 reader.where(), quote_name(info.name)));
  const std::string where = tensor_text(reader, info.name);
  const auto dimensions = reader.take<std::uint32_t>("a tensor's dimensions");
  if (dimensions < 1 || dimensions > kMaxDimensions)
    throw data_error(
        fmt::format("{} has {} dimensions, expected 1 to {}", where, dimensions, kMaxDimensions));
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = reader.take<std::uint64_t>("a tensor's shape");
    if (size == 0 || size >> 63 != 0)
      throw data_error(fmt::format("{} has a dimension of {}, expected 1 to 2^63-1", where, size));
    // The first is the one whose elements are neighbours: PyTorch's last.
    info.tensor.shape.insert(info.tensor.shape.begin(), static_cast<std::int64_t>(size));
  }
  set_type(where, reader.take<std::uint32_t>("a tensor's type"), info.tensor);
  const auto offset = reader.take<std::uint64_t>("a tensor's offset");
  if (offset >> 62 != 0)
    throw data_error(fmt::format("{} begins at data byte {}, far beyond the file", where, offset));
  info.tensor.offset = static_cast<std::int64_t>(offset);
  return info;
}

std::int64_t alignment_of(const GgufMetadata& metadata) {
  constexpr const char* kKey = "general.alignment";
  if (!metadata.has(kKey)) return kDefaultAlignment;
  const std::int64_t alignment = metadata.integer(kKey);
  if (alignment < 8 || alignment > (1 << 30) ||
      !std::has_single_bit(static_cast<std::uint64_t>(alignment)))
    throw data_error(fmt::format("{}: {} should be a power of two from 8 to 2^30, found {}",
                                 metadata.where(), kKey, alignment));
  return alignment;
}

// Turns offsets into those of the file, after seeing that every tensor has bytes of its own.
void place_tensors(const File& file, std::int64_t data_begin, std::int64_t alignment,
                   std::vector<TensorInfo>& infos) {
  const std::string where = file.path().string();
  const std::int64_t file_bytes = file.size();
  std::sort(infos.begin(), infos.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.tensor.offset < b.tensor.offset;
  });
  std::int64_t end = data_begin, unused = 0;
  for (TensorInfo& info : infos) {
    StoredTensor& tensor = info.tensor;
    const std::string name = fmt::format("{}: tensor {}", where, quote_name(info.name));
    if (tensor.offset % alignment != 0)
      throw data_error(fmt::format("{} begins at data byte {}, expected a multiple of {}", name,
                                   tensor.offset, alignment));
    tensor.offset += data_begin;  // below 2^62 + 2^30
    if (tensor.bytes > file_bytes || tensor.offset > file_bytes - tensor.bytes)
      throw data_error(fmt::format("{} needs {} bytes at byte {}, but the file has {}", name,
                                   tensor.bytes, tensor.offset, file_bytes),
                       "the file is truncated or damaged: fetch it again");
    if (tensor.offset < end)
      throw data_error(fmt::format("{} begins at byte {}, inside another tensor, which ends at {}",
                                   name, tensor.offset, end));
    if (tensor.offset - end >= alignment) unused += tensor.offset - end;
    end = tensor.offset + tensor.bytes;
  }
  if (file_bytes - end >= alignment) unused += file_bytes - end;
  if (unused > 0)
    spdlog::warn("{}: {} bytes of the data belong to no tensor and are ignored", where, unused);
}

void check_version(std::uint32_t version, const std::string& where) {
  if (version == 2 || version == 3) return;
  const std::string hint = "fetch the model as GGUF version 2 or 3, or as safetensors";
  if (version != 0 && (version & 0xffffu) == 0)
    throw data_error(fmt::format("{} is big-endian GGUF, which is not supported", where), hint);
  throw data_error(
      fmt::format("{} is GGUF version {}, which is not supported; expected 2 or 3", where, version),
      hint);
}

// Adds the file's tensors to `set`, and returns its metadata.
GgufMetadata add_file(const fs::path& path, TensorSet& set) {
  set.files.push_back(std::make_unique<File>(File::open_read(path)));
  const File& file = *set.files.back();
  HeaderReader reader(file);
  const std::string where = reader.where();
  if (file.size() < 4 || reader.take<std::uint32_t>("the magic") != 0x46554747u)
    throw data_error(fmt::format("{} is not a GGUF file: it does not begin with \"GGUF\"", where),
                     "the file is damaged or something else: fetch it again");
  check_version(reader.take<std::uint32_t>("the version"), where);
  const auto tensors = reader.take<std::uint64_t>("the number of tensors");
  const auto pairs = reader.take<std::uint64_t>("the number of keys");
  if (tensors > kMaxTensors || pairs > kMaxPairs)
    throw data_error(fmt::format("{} claims {} tensors and {} keys, expected at most {} and {}",
                                 where, tensors, pairs, kMaxTensors, kMaxPairs));
  GgufMetadata::Places places;
  for (std::uint64_t i = 0; i < pairs; ++i) take_pair(reader, places);
  std::vector<TensorInfo> infos;
  for (std::uint64_t i = 0; i < tensors; ++i) infos.push_back(take_tensor_info(reader));
  const std::int64_t header_end = reader.position();
  std::vector<std::byte> header = reader.take_bytes();
  set.identity += fmt::format("{}, header {}", file_identity(file), hash_to_hex(xxh3(header)));
  GgufMetadata metadata(where, std::move(header), std::move(places));
  const std::int64_t alignment = alignment_of(metadata);
  place_tensors(file, (header_end + alignment - 1) / alignment * alignment, alignment, infos);
  for (TensorInfo& info : infos) {
    info.tensor.file = &file;
    if (const auto [there, added] = set.tensors.emplace(info.name, std::move(info.tensor)); !added)
      throw data_error(
          fmt::format("{}: tensor {} is there twice{}", where, quote_name(info.name),
                      there->second.file == &file
                          ? std::string()
                          : fmt::format(", first in {}", there->second.file->path().string())));
  }
  return metadata;
}

// NAME-00002-of-00005.gguf
struct SplitName {
  std::string stem;
  std::int64_t number = 0, count = 0;  // number from 1
};

std::string split_file_name(const SplitName& name) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", name.stem, name.number, name.count);
}

std::optional<SplitName> parse_split_name(const std::string& file) {
  constexpr std::size_t kTail = std::string_view("-00001-of-00005.gguf").size();
  if (file.size() <= kTail) return std::nullopt;
  const std::string tail = file.substr(file.size() - kTail);
  SplitName name{.stem = file.substr(0, file.size() - kTail)};
  std::from_chars(tail.data() + 1, tail.data() + 6, name.number);
  std::from_chars(tail.data() + 10, tail.data() + 15, name.count);
  if (name.number < 1 || split_file_name(name) != file) return std::nullopt;
  return name;
}

std::int64_t split_count(const GgufMetadata& metadata) {
  constexpr const char* kKey = "split.count";
  return metadata.has(kKey) ? metadata.integer(kKey) : 1;
}

void check_split(const GgufMetadata& metadata, const SplitName& name) {
  const std::int64_t number = metadata.integer("split.no"), count = split_count(metadata);
  if (number + 1 != name.number || count != name.count)
    throw data_error(fmt::format("{} says that it is file {} of {}, which its name contradicts",
                                 metadata.where(), number + 1, count),
                     "give the files of the set their original names");
}

GgufCheckpoint read_split_set(const fs::path& path, std::int64_t count) {
  const auto given = parse_split_name(path.filename().string());
  if (!given || given->count != count)
    throw data_error(
        fmt::format("{} is one of {} files, but its name does not say so", path.string(), count),
        fmt::format("give the files of the set their original names: NAME-00001-of-{:05}.gguf",
                    count));
  SplitName name = *given;
  const auto file = [&](std::int64_t number) {
    name.number = number;
    return path.parent_path() / split_file_name(name);
  };
  for (std::int64_t number = 1; number <= count; ++number) {
    std::error_code error;
    if (!fs::exists(file(number), error) && !error)
      throw data_error(fmt::format("{} is missing; {} is one of {} files", file(number).string(),
                                   path.filename().string(), count),
                       "fetch the missing file into the same folder");
  }
  TensorSet set;
  std::optional<GgufMetadata> first;
  for (std::int64_t number = 1; number <= count; ++number) {
    GgufMetadata metadata = add_file(file(number), set);
    check_split(metadata, name);
    if (!first) first = std::move(metadata);
  }
  constexpr const char* kTotal = "split.tensors.count";
  const auto found = static_cast<std::int64_t>(set.tensors.size());
  if (first->has(kTotal) && first->integer(kTotal) != found)
    throw data_error(fmt::format("{}: {} is {}, but the {} files hold {} tensors", first->where(),
                                 kTotal, first->integer(kTotal), count, found),
                     "fetch all files of the set again");
  return {std::move(*first), std::move(set)};
}

}  // namespace

GgufCheckpoint read_gguf(const fs::path& path) {
  TensorSet set;
  GgufMetadata metadata = add_file(path, set);
  const std::int64_t count = split_count(metadata);
  if (count > kMaxSplits)
    throw data_error(fmt::format("{} claims to be one of {} files, expected at most {}",
                                 path.string(), count, kMaxSplits));
  if (count > 1) return read_split_set(path, count);
  return {std::move(metadata), std::move(set)};
}

}  // namespace stagecoach
