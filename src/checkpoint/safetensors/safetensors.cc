#include "checkpoint/safetensors/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "base/json.h"
#include "checkpoint/foreign_text.h"

namespace stagecoach {
namespace {

static_assert(std::endian::native == std::endian::little, "tensor data is read as it lies");

constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr int kMaxHeaderDepth = 3;                     // { tensor: { shape: [ … ] } }

struct DTypeBits {
  std::string_view name;
  std::int64_t bits;
};
constexpr std::array<DTypeBits, 22> kDTypes = {{
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
}};

// A non-negative integer below 2⁶³, or nothing: floats and bigger numbers are refused.
std::optional<std::int64_t> size_from(const Json& json) {
  if (!json.is_number_unsigned()) return std::nullopt;
  const auto value = json.get<std::uint64_t>();
  if (value >> 63 != 0) return std::nullopt;
  return static_cast<std::int64_t>(value);
}

std::int64_t require_size(const Json& json, const std::string& where, const char* what) {
  if (const auto value = size_from(json)) return *value;
  throw data_error(fmt::format("{}: {} should be whole numbers from 0 to 2^63-1, found {}", where,
                               what, quote_name(json.dump(-1, ' ', true))));
}

std::int64_t dtype_bits(const std::string& dtype, const std::string& where) {
  for (const DTypeBits& known : kDTypes)
    if (known.name == dtype) return known.bits;
  std::string names;
  for (const DTypeBits& known : kDTypes)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", known.name);
  throw data_error(
      fmt::format("{}: unknown dtype {}, expected one of {}", where, quote_name(dtype), names));
}

// Offsets here still count from the start of the data, as in the header.
SafetensorsEntry parse_entry(const Json& json, const std::string& where) {
  const JsonObject object(json, where);
  object.only({"dtype", "shape", "data_offsets"});
  SafetensorsEntry entry;
  entry.dtype = object.string("dtype");
  for (const Json& dimension : object.array("shape"))
    entry.shape.push_back(require_size(dimension, where, "the dimensions in \"shape\""));
  const Json& offsets = object.array("data_offsets");
  if (offsets.size() != 2)
    throw data_error(fmt::format("{}: \"data_offsets\" should be [begin, end], found {} numbers",
                                 where, offsets.size()));
  entry.offset = require_size(offsets[0], where, "\"data_offsets\"");
  const std::int64_t end = require_size(offsets[1], where, "\"data_offsets\"");
  if (end < entry.offset)
    throw data_error(fmt::format("{}: \"data_offsets\" end at {} before they begin at {}", where,
                                 end, entry.offset));
  entry.bytes = end - entry.offset;
  return entry;
}

void check_size(const SafetensorsEntry& entry, const std::string& where) {
  std::int64_t bits = dtype_bits(entry.dtype, where);
  for (const std::int64_t dimension : entry.shape) {
    if (__builtin_mul_overflow(bits, dimension, &bits))
      throw data_error(fmt::format("{}: shape {} of {} overflows 2^63 bits", where,
                                   shape_text(entry.shape), entry.dtype));
  }
  if (bits % 8 != 0)
    throw data_error(fmt::format("{}: shape {} of {} is {} bits, expected whole bytes", where,
                                 shape_text(entry.shape), entry.dtype, bits));
  if (bits / 8 != entry.bytes)
    throw data_error(fmt::format("{}: shape {} of {} takes {} bytes, but \"data_offsets\" span {}",
                                 where, shape_text(entry.shape), entry.dtype, bits / 8,
                                 entry.bytes));
}

void check_metadata(const Json& metadata, const std::string& where) {
  if (!metadata.is_object())
    throw data_error(fmt::format("{}: \"__metadata__\" should be an object, found {}", where,
                                 metadata.type_name()));
  for (const auto& [key, value] : metadata.items()) {
    if (!value.is_string())
      throw data_error(
          fmt::format("{}: \"__metadata__\" should map names to strings, found {} for {}", where,
                      value.type_name(), quote_name(key)));
  }
}

// Every byte of the data belongs to exactly one tensor.
void check_coverage(const std::map<std::string, SafetensorsEntry>& tensors, std::int64_t data_bytes,
                    const std::string& where) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  order.reserve(tensors.size());
  for (const auto& item : tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.offset, a->second.bytes) <
           std::pair(b->second.offset, b->second.bytes);
  });
  std::int64_t covered = 0;
  for (const auto* item : order) {
    const auto& [name, entry] = *item;
    const std::string tensor = fmt::format("{}: tensor {}", where, quote_name(name));
    if (entry.offset != covered)
      throw data_error(
          fmt::format("{} begins at data byte {}, expected {} ({})", tensor, entry.offset, covered,
                      entry.offset < covered ? "tensors overlap" : "there is a hole before it"));
    check_size(entry, tensor);
    covered +=
        entry.bytes;  // both below 2⁶³ and checked against each other: end = offset + bytes fits
  }
  if (covered != data_bytes)
    throw data_error(fmt::format("{}: the header describes {} bytes of tensors, found {}", where,
                                 covered, data_bytes),
                     covered > data_bytes ? "the file is truncated: fetch it again"
                                          : "the file has trailing bytes: fetch it again");
}

}  // namespace

std::optional<BlockFormat> SafetensorsEntry::format() const {
  if (dtype == "F32") return BlockFormat::kF32;
  if (dtype == "F16") return BlockFormat::kF16;
  if (dtype == "BF16") return BlockFormat::kBF16;
  return std::nullopt;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(std::make_unique<File>(File::open_read(path))) {
  const std::string where = path.string();
  const std::int64_t file_bytes = file_->size();
  if (file_bytes < 8)
    throw data_error(
        fmt::format("{} has {} bytes, expected at least the 8 of a safetensors header length",
                    where, file_bytes));
  std::uint64_t header_bytes = 0;
  file_->read_at(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
  if (header_bytes > static_cast<std::uint64_t>(kMaxHeaderBytes))
    throw data_error(fmt::format(
        "{}: the header claims {} bytes, expected at most {}: this is not a safetensors file",
        where, header_bytes, kMaxHeaderBytes));
  const auto length = static_cast<std::int64_t>(header_bytes);
  if (length > file_bytes - 8)
    throw data_error(fmt::format("{}: the header claims {} bytes, but only {} follow its length",
                                 where, length, file_bytes - 8),
                     "the file is truncated: fetch it again");

  std::string header(static_cast<std::size_t>(length), '\0');
  file_->read_at(8, std::as_writable_bytes(std::span(header)));
  header_hash_ = xxh3(as_bytes(header));
  const Json json = parse_json(header, where + ": the header", kMaxHeaderDepth);
  if (!json.is_object())
    throw data_error(
        fmt::format("{}: the header should be a JSON object, found {}", where, json.type_name()));
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      check_metadata(value, where);
      continue;
    }
    tensors_.emplace(name,
                     parse_entry(value, fmt::format("{}: tensor {}", where, quote_name(name))));
  }
  check_coverage(tensors_, file_bytes - 8 - length, where);
  for (auto& [name, entry] : tensors_) entry.offset += 8 + length;
}

}  // namespace stagecoach
