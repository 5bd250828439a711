#include "store/slab_format.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/dtype_names.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"

namespace stagecoach {
namespace {

constexpr char kMagic[8] = {'S', 'T', 'G', 'S', 'L', 'A', 'B', '\0'};
constexpr std::size_t kCheckedHeaderBytes = 32;  // what the header's own checksum covers

constexpr std::int64_t align_up(std::int64_t value, std::int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

template <typename Unsigned>
void put_little_endian(std::byte* destination, Unsigned value) {
  for (std::size_t i = 0; i < sizeof(Unsigned); ++i)
    destination[i] = static_cast<std::byte>(value >> (8 * i));
}

template <typename Unsigned>
Unsigned get_little_endian(const std::byte* source) {
  Unsigned value = 0;
  for (std::size_t i = 0; i < sizeof(Unsigned); ++i)
    value |= static_cast<Unsigned>(std::to_integer<Unsigned>(source[i]) << (8 * i));
  return value;
}

// "" when equal: lets layout_difference be a list of comparisons.
template <typename Value>
std::string differ(std::string_view what, const Value& expected, const Value& found) {
  if (expected == found) return {};
  return fmt::format("{}: expected {}, found {}", what, expected, found);
}

std::string shape_text(const TensorSpec& spec) {
  return fmt::format("{} x {}", spec.rows, spec.cols);
}

std::string tensor_difference(const TensorEntry& expected, const TensorEntry& found) {
  std::string text = differ("role", role_name(expected.spec.role), role_name(found.spec.role));
  if (text.empty()) text = differ("shape", shape_text(expected.spec), shape_text(found.spec));
  if (text.empty())
    text = differ("dtype", dtype_name(expected.spec.type), dtype_name(found.spec.type));
  if (text.empty())
    text = differ("layout", layout_name(expected.spec.layout), layout_name(found.spec.layout));
  if (text.empty()) text = differ("offset", expected.offset, found.offset);
  return text;
}

std::string part_difference(const PartEntry& expected, const PartEntry& found) {
  std::string text = differ("kind", part_name(expected.kind), part_name(found.kind));
  if (text.empty()) text = differ("offset", expected.offset, found.offset);
  if (text.empty()) text = differ("bytes", expected.bytes, found.bytes);
  if (text.empty())
    text = differ("number of tensors", expected.tensors.size(), found.tensors.size());
  for (std::size_t i = 0; text.empty() && i < expected.tensors.size(); ++i) {
    text = tensor_difference(expected.tensors[i], found.tensors[i]);
    if (!text.empty()) text = fmt::format("{}: {}", role_name(expected.tensors[i].spec.role), text);
  }
  return text;
}

}  // namespace

SlabEntry plan_slab(std::string file, SlabKind kind, std::uint64_t id,
                    const std::vector<TensorSpec>& tensors) {
  SlabEntry slab{.file = std::move(file), .id = id, .kind = kind, .parts = {}};
  std::int64_t end = 0;  // of the last tensor, in its part
  for (const TensorSpec& tensor : tensors) {
    if (slab.parts.empty() || slab.parts.back().kind != tensor.part) {
      STAGECOACH_CHECK(slab.part(tensor.part) == nullptr);  // the catalog lists parts one by one
      slab.parts.push_back({.kind = tensor.part, .tensors = {}});
      end = 0;
    }
    PartEntry& part = slab.parts.back();
    const std::int64_t offset = align_up(end, kTensorAlignment);
    part.tensors.push_back({.spec = tensor, .offset = offset});
    end = offset + tensor.bytes();
    part.bytes = align_up(end, kSlabAlignment);
  }
  slab.bytes = kSlabAlignment;
  for (PartEntry& part : slab.parts) {
    part.offset = slab.bytes;
    slab.bytes += part.bytes;
  }
  return slab;
}

std::string layout_difference(const SlabEntry& expected, const SlabEntry& found) {
  std::string text = differ("kind", slab_kind_name(expected.kind), slab_kind_name(found.kind));
  if (text.empty()) text = differ("bytes", expected.bytes, found.bytes);
  if (text.empty()) text = differ("number of parts", expected.parts.size(), found.parts.size());
  for (std::size_t i = 0; text.empty() && i < expected.parts.size(); ++i) {
    text = part_difference(expected.parts[i], found.parts[i]);
    if (!text.empty())
      text = fmt::format("the {} part: {}", part_name(expected.parts[i].kind), text);
  }
  return text;
}

std::uint64_t slab_id(const ModelSpec& spec, DType weights, std::string_view file) {
  StreamingHash hash;
  hash.update(as_bytes(to_json(spec).dump()));
  hash.update(as_bytes(dtype_name(weights)));
  hash.update(as_bytes(file));
  return hash.digest();
}

SlabHeader slab_header(const SlabEntry& slab) {
  SlabHeader header{};
  std::memcpy(header.data(), kMagic, sizeof(kMagic));
  put_little_endian(header.data() + 8, static_cast<std::uint32_t>(kStoreVersion));
  put_little_endian(header.data() + 12, static_cast<std::uint32_t>(slab.kind));
  put_little_endian(header.data() + 16, slab.id);
  put_little_endian(header.data() + 24, static_cast<std::uint64_t>(slab.bytes));
  put_little_endian(header.data() + 32, xxh3(std::span(header).first(kCheckedHeaderBytes)));
  return header;
}

void check_slab_header(const SlabHeader& header, const SlabEntry& slab, const std::string& where) {
  const std::byte* bytes = header.data();
  if (std::memcmp(bytes, kMagic, sizeof(kMagic)) != 0)
    throw data_error(fmt::format("{} is not a slab: its first bytes are not \"STGSLAB\"", where));
  const auto version = get_little_endian<std::uint32_t>(bytes + 8);
  if (version > kStoreVersion)
    throw data_error(
        fmt::format("{} was written by a newer Stagecoach: expected slab version {}, "
                    "found {}",
                    where, kStoreVersion, version));
  const auto checksum = get_little_endian<std::uint64_t>(bytes + 32);
  const std::uint64_t actual = xxh3(std::span(header).first(kCheckedHeaderBytes));
  if (checksum != actual)
    throw data_error(fmt::format("{}: the header is damaged: expected checksum {}, found {}", where,
                                 hash_to_hex(checksum), hash_to_hex(actual)));
  const auto id = get_little_endian<std::uint64_t>(bytes + 16);
  if (id != slab.id)
    throw data_error(
        fmt::format("{} is another slab than the manifest names: expected id {}, found "
                    "{}",
                    where, hash_to_hex(slab.id), hash_to_hex(id)));
  // Version, kind and length are settled by the manifest; a header that claims others, or carries
  // bytes where the format has zeros, was not written with it.
  if (header != slab_header(slab))
    throw data_error(fmt::format("{}: the header is damaged: it does not fit a {} slab of {} bytes",
                                 where, slab_kind_name(slab.kind), slab.bytes));
}

File open_slab_file(const std::filesystem::path& path, const SlabEntry& slab) {
  File file = File::open_read(path);
  if (file.size() != slab.bytes)
    throw data_error(fmt::format("{} has the wrong length: expected {} bytes, found {}",
                                 path.string(), slab.bytes, file.size()));
  SlabHeader header{};
  file.read_at(0, header);
  check_slab_header(header, slab, path.string());
  return file;
}

std::string_view slab_kind_name(SlabKind kind) {
  switch (kind) {
    case SlabKind::kEmbedding:
      return "embedding";
    case SlabKind::kLayer:
      return "layer";
    case SlabKind::kHead:
      return "head";
  }
  return "unknown";
}

}  // namespace stagecoach
