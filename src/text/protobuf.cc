#include "text/protobuf.h"

#include <bit>

#include "base/error.h"

namespace stagecoach {
namespace {

void append_varint(std::string& message, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) message.push_back(static_cast<char>(value | 0x80));
  message.push_back(static_cast<char>(value));
}

void append_tag(std::string& message, std::uint64_t number, ProtoField::Wire wire) {
  append_varint(message, number << 3 | static_cast<std::uint64_t>(wire));
}

}  // namespace

std::uint64_t ProtoReader::varint() {
  const std::size_t begin = position_;
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64 && position_ < message_.size(); shift += 7) {
    const auto byte = static_cast<unsigned char>(message_[position_++]);
    if (shift == 63 && byte > 1) break;
    value |= std::uint64_t{byte & 0x7FU} << shift;
    if (byte < 0x80) return value;
  }
  throw data_error(fmt::format("{}: expected a number of at most 64 bits at byte {} of {}", where_,
                               begin, message_.size()));
}

std::uint64_t ProtoReader::fixed(std::size_t bytes) {
  if (message_.size() - position_ < bytes)
    throw data_error(fmt::format("{}: expected {} bytes at byte {}, found the end after {}", where_,
                                 bytes, position_, message_.size() - position_));
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes; ++i)
    value |= std::uint64_t{static_cast<unsigned char>(message_[position_++])} << (8 * i);
  return value;
}

std::optional<ProtoField> ProtoReader::next() {
  if (position_ == message_.size()) return std::nullopt;
  const std::size_t begin = position_;
  const std::uint64_t tag = varint();
  ProtoField field;
  field.number = tag >> 3;
  field.wire = static_cast<ProtoField::Wire>(tag & 7);
  switch (field.wire) {
    case ProtoField::Wire::kVarint:
      field.value = varint();
      break;
    case ProtoField::Wire::kFixed64:
      field.value = fixed(8);
      break;
    case ProtoField::Wire::kFixed32:
      field.value = fixed(4);
      break;
    case ProtoField::Wire::kBytes: {
      const std::uint64_t size = varint();
      if (size > message_.size() - position_)
        throw data_error(
            fmt::format("{}: the field at byte {} says that it has {} bytes, but only {} follow",
                        where_, begin, size, message_.size() - position_));
      field.bytes = message_.substr(position_, size);
      position_ += size;
      break;
    }
    default:  // groups, which no message that is read here has
      throw data_error(fmt::format("{}: the field at byte {} has the unknown wire type {}", where_,
                                   begin, tag & 7));
  }
  if (field.number == 0)
    throw data_error(fmt::format("{}: the field at byte {} has the number 0", where_, begin));
  return field;
}

void append_proto_number(std::string& message, std::uint64_t number, std::uint64_t value) {
  append_tag(message, number, ProtoField::Wire::kVarint);
  append_varint(message, value);
}

void append_proto_float(std::string& message, std::uint64_t number, float value) {
  append_tag(message, number, ProtoField::Wire::kFixed32);
  const auto bits = std::bit_cast<std::uint32_t>(value);
  for (unsigned shift = 0; shift < 32; shift += 8)
    message.push_back(static_cast<char>(bits >> shift));
}

void append_proto_bytes(std::string& message, std::uint64_t number, std::string_view bytes) {
  append_tag(message, number, ProtoField::Wire::kBytes);
  append_varint(message, bytes.size());
  message += bytes;
}

}  // namespace stagecoach
