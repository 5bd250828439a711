#include <limits>
#include <optional>

#include "base/dtype_names.h"
#include "base/error.h"
#include "base/hash.h"
#include "store/slab_format.h"

namespace stagecoach {
namespace {

constexpr std::int64_t kLargest = std::numeric_limits<std::int64_t>::max();

Json to_json(const TensorEntry& tensor) {
  return {{"role", role_name(tensor.spec.role)},
          {"shape", {tensor.spec.rows, tensor.spec.cols}},
          {"dtype", dtype_name(tensor.spec.type)},
          {"layout", layout_name(tensor.spec.layout)},
          {"offset", tensor.offset},
          {"bytes", tensor.spec.bytes()},
          {"checksum", hash_to_hex(tensor.checksum)}};
}

Json to_json(const PartEntry& part) {
  Json tensors = Json::array();
  for (const TensorEntry& tensor : part.tensors) tensors.push_back(to_json(tensor));
  return {{"part", part_name(part.kind)},
          {"offset", part.offset},
          {"bytes", part.bytes},
          {"checksum", hash_to_hex(part.checksum)},
          {"tensors", std::move(tensors)}};
}

std::uint64_t hash_field(const JsonObject& object, const char* key) {
  const std::string text = object.string(key);
  const std::optional<std::uint64_t> hash = hash_from_hex(text);
  // Compared with its own print: one spelling per value.
  if (!hash || hash_to_hex(*hash) != text)
    throw data_error(
        fmt::format("{}: \"{}\" should be 16 lower-case hexadecimal digits, found "
                    "\"{}\"",
                    object.where(), key, text));
  return *hash;
}

// A field whose text one of the parse_… functions must know.
template <typename Parse>
auto named_field(const JsonObject& object, const char* key, Parse parse) {
  const std::string text = object.string(key);
  const auto value = parse(text);
  if (!value) throw data_error(fmt::format("{}: unknown {} \"{}\"", object.where(), key, text));
  return *value;
}

std::optional<SlabKind> parse_slab_kind(std::string_view name) {
  for (const SlabKind kind : {SlabKind::kEmbedding, SlabKind::kLayer, SlabKind::kHead})
    if (slab_kind_name(kind) == name) return kind;
  return std::nullopt;
}

// Bare: it cannot leave the folder, and cannot be one of the store's other files.
bool is_slab_file_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".slab";
  if (name.size() <= kSuffix.size() || name.size() > 255 || !name.ends_with(kSuffix)) return false;
  if (name.front() == '.') return false;
  for (const char c : name)
    if (c == '/' || c == '\\' || static_cast<unsigned char>(c) < ' ') return false;
  return true;
}

void read_shape(const JsonObject& object, TensorSpec& spec) {
  // Far above what a catalog can hold, far below where rows · cols · 4 leaves 63 bits.
  constexpr std::int64_t kLargestDimension = std::int64_t{1} << 28;
  const Json& shape = object.array("shape");
  const auto is_size = [](const Json& size) {
    // An unsigned number beyond 63 bits arrives negative.
    return size.is_number_integer() && size.get<std::int64_t>() >= 1 &&
           size.get<std::int64_t>() <= kLargestDimension;
  };
  if (shape.size() != 2 || !is_size(shape[0]) || !is_size(shape[1]))
    throw data_error(fmt::format("{}: \"shape\" should be two sizes up to {}, found {}",
                                 object.where(), kLargestDimension, shape.dump()));
  spec.rows = shape[0].get<std::int64_t>();
  spec.cols = shape[1].get<std::int64_t>();
}

TensorEntry tensor_from_json(const Json& json, PartKind part, const std::string& where) {
  const JsonObject object(json, where);
  object.only({"role", "shape", "dtype", "layout", "offset", "bytes", "checksum"});
  TensorEntry tensor{};
  tensor.spec.role = named_field(object, "role", parse_role);
  tensor.spec.part = part;
  read_shape(object, tensor.spec);
  tensor.spec.type = named_field(object, "dtype", parse_dtype);
  tensor.spec.layout = named_field(object, "layout", parse_layout);
  if (!layout_holds(tensor.spec.layout, tensor.spec.type))
    throw data_error(fmt::format("{}: a {} tensor cannot lie in {}", object.where(),
                                 dtype_name(tensor.spec.type), layout_name(tensor.spec.layout)));
  tensor.offset = object.integer_in("offset", 0, kLargest);
  tensor.checksum = hash_field(object, "checksum");
  object.integer_in("bytes", tensor.spec.bytes(), tensor.spec.bytes());  // follows from the rest
  return tensor;
}

PartEntry part_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  object.only({"part", "offset", "bytes", "checksum", "tensors"});
  PartEntry part{};
  part.kind = named_field(object, "part", parse_part);
  part.offset = object.integer_in("offset", 0, kLargest);
  part.bytes = object.integer_in("bytes", 0, kLargest);
  part.checksum = hash_field(object, "checksum");
  for (const Json& tensor : object.array("tensors"))
    part.tensors.push_back(tensor_from_json(
        tensor, part.kind,
        fmt::format("{}: {} tensor {}", where, part_name(part.kind), part.tensors.size())));
  return part;
}

}  // namespace

Json to_json(const SlabEntry& slab) {
  Json parts = Json::array();
  for (const PartEntry& part : slab.parts) parts.push_back(to_json(part));
  return {{"file", slab.file},
          {"id", hash_to_hex(slab.id)},
          {"kind", slab_kind_name(slab.kind)},
          {"bytes", slab.bytes},
          {"parts", std::move(parts)}};
}

SlabEntry slab_from_json(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  object.only({"file", "id", "kind", "bytes", "parts"});
  SlabEntry slab{};
  slab.file = object.string("file");
  if (!is_slab_file_name(slab.file))
    throw data_error(
        fmt::format("{}: \"file\" should be a bare name like \"layer-000.slab\", found "
                    "\"{}\"",
                    where, slab.file));
  slab.id = hash_field(object, "id");
  slab.kind = named_field(object, "kind", parse_slab_kind);
  slab.bytes = object.integer_in("bytes", 0, kLargest);
  for (const Json& part : object.array("parts"))
    slab.parts.push_back(part_from_json(part, fmt::format("{}: {}", where, slab.file)));
  return slab;
}

}  // namespace stagecoach
