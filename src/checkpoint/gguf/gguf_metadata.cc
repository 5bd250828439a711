#include "checkpoint/gguf/gguf_metadata.h"

#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "checkpoint/foreign_text.h"
#include "text/tokenizer.h"

namespace stagecoach {
namespace {

constexpr std::array<std::size_t, kGgufTypes> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr std::array<std::string_view, kGgufTypes> kNames = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

template <typename T>
T load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

}  // namespace

std::size_t gguf_type_bytes(GgufType type) {
  return kBytes[static_cast<std::size_t>(type)];
}

std::string GgufMetadata::name(std::string_view key) const {
  return fmt::format("{}: key {}", where_, quote_name(key));
}

std::string_view GgufMetadata::type_name(const Place& place) const {
  return kNames[static_cast<std::size_t>(place.array ? GgufType::kArray : place.element)];
}

const GgufMetadata::Place& GgufMetadata::at(std::string_view key) const {
  const auto found = places_.find(key);
  if (found == places_.end()) throw data_error(fmt::format("{} is missing", name(key)));
  return found->second;
}

const GgufMetadata::Place& GgufMetadata::array_at(std::string_view key) const {
  const Place& place = at(key);
  if (!place.array)
    throw data_error(fmt::format("{} should be an array, found {}", name(key), type_name(place)));
  return place;
}

std::string_view GgufMetadata::text(std::size_t& offset) const {
  const auto length = static_cast<std::size_t>(load<std::uint64_t>(bytes_.data() + offset));
  const auto* begin = reinterpret_cast<const char*>(bytes_.data() + offset + 8);
  offset += 8 + length;
  return {begin, length};
}

Json GgufMetadata::scalar(GgufType type, std::size_t offset) const {
  const std::byte* data = bytes_.data() + offset;
  switch (type) {
    case GgufType::kU8:
      return load<std::uint8_t>(data);
    case GgufType::kI8:
      return load<std::int8_t>(data);
    case GgufType::kU16:
      return load<std::uint16_t>(data);
    case GgufType::kI16:
      return load<std::int16_t>(data);
    case GgufType::kU32:
      return load<std::uint32_t>(data);
    case GgufType::kI32:
      return load<std::int32_t>(data);
    case GgufType::kF32:
      return load<float>(data);
    case GgufType::kBool:
      return load<std::uint8_t>(data) != 0;
    case GgufType::kU64:
      return load<std::uint64_t>(data);
    case GgufType::kI64:
      return load<std::int64_t>(data);
    case GgufType::kF64:
      return load<double>(data);
    case GgufType::kString:
      return text(offset);
    case GgufType::kArray:
      break;
  }
  STAGECOACH_CHECK(false);
}

Json GgufMetadata::setting(std::string_view key) const {
  const Place& place = at(key);
  if (place.count == 0) throw data_error(fmt::format("{} is an empty array", name(key)));
  if (place.element == GgufType::kString) return string(key);
  const Json first = scalar(place.element, place.offset);
  const std::size_t size = gguf_type_bytes(place.element);
  for (std::uint64_t i = 1; i < place.count; ++i) {
    const Json other = scalar(place.element, place.offset + static_cast<std::size_t>(i) * size);
    if (other != first)
      throw data_error(
          fmt::format("{} is {} for layer 0 and {} for layer {}; layers that differ are not "
                      "supported",
                      name(key), first.dump(), other.dump(), i));
  }
  if (first.is_number_float() && !std::isfinite(first.get<double>()))
    throw data_error(fmt::format("{} should be finite, found {}", name(key), first.get<double>()));
  return first;
}

std::int64_t GgufMetadata::integer(std::string_view key) const {
  const Place& place = at(key);
  const Json value = place.array || place.element == GgufType::kString
                         ? Json()
                         : scalar(place.element, place.offset);
  if (!value.is_number_integer())
    throw data_error(
        fmt::format("{} should be a whole number, found {}", name(key), type_name(place)));
  if (value < 0 || value.get<std::uint64_t>() >> 63 != 0)
    throw data_error(
        fmt::format("{} should be from 0 to 2^63-1, found {}", name(key), value.dump()));
  return value.get<std::int64_t>();
}

double GgufMetadata::number(std::string_view key) const {
  const Place& place = at(key);
  const Json value = place.array ? Json() : setting(key);
  if (!value.is_number())
    throw data_error(fmt::format("{} should be a number, found {}", name(key), type_name(place)));
  return value.get<double>();
}

bool GgufMetadata::boolean(std::string_view key) const {
  const Place& place = at(key);
  if (place.array || place.element != GgufType::kBool)
    throw data_error(
        fmt::format("{} should be true or false, found {}", name(key), type_name(place)));
  return scalar(place.element, place.offset).get<bool>();
}

std::string GgufMetadata::string(std::string_view key) const {
  const Place& place = at(key);
  if (place.array || place.element != GgufType::kString)
    throw data_error(fmt::format("{} should be a string, found {}", name(key), type_name(place)));
  std::size_t offset = place.offset;
  const std::string_view value = text(offset);
  if (!is_valid_utf8(value)) throw data_error(fmt::format("{} is not valid UTF-8", name(key)));
  return std::string(value);
}

std::vector<std::string> GgufMetadata::strings(std::string_view key) const {
  const Place& place = array_at(key);
  if (place.element != GgufType::kString)
    throw data_error(fmt::format("{} should hold strings, found {}", name(key),
                                 kNames[static_cast<std::size_t>(place.element)]));
  std::vector<std::string> values;
  values.reserve(static_cast<std::size_t>(place.count));
  std::size_t offset = place.offset;
  for (std::uint64_t i = 0; i < place.count; ++i) values.emplace_back(text(offset));
  return values;
}

std::vector<std::int64_t> GgufMetadata::integers(std::string_view key) const {
  const Place& place = array_at(key);
  std::vector<std::int64_t> values;
  const std::size_t size = gguf_type_bytes(place.element);
  for (std::uint64_t i = 0; i < place.count; ++i) {
    const Json value =
        place.element == GgufType::kString
            ? Json()
            : scalar(place.element, place.offset + static_cast<std::size_t>(i) * size);
    if (!value.is_number_integer() || (value > 0 && value.get<std::uint64_t>() >> 63 != 0))
      throw data_error(fmt::format("{} should hold whole numbers below 2^63, found {}", name(key),
                                   value.is_null() ? "strings" : value.dump()));
    values.push_back(value.get<std::int64_t>());
  }
  return values;
}

std::vector<float> GgufMetadata::numbers(std::string_view key) const {
  const Place& place = array_at(key);
  if (place.element != GgufType::kF32)
    throw data_error(fmt::format("{} should hold f32 numbers, found {}", name(key),
                                 kNames[static_cast<std::size_t>(place.element)]));
  std::vector<float> values(static_cast<std::size_t>(place.count));
  std::memcpy(values.data(), bytes_.data() + place.offset, values.size() * sizeof(float));
  return values;
}

}  // namespace stagecoach
