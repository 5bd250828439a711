// Reading protocol buffers' wire format without their library: fields one after another, in the
// order of the bytes. Source: https://protobuf.dev/programming-guides/encoding.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace stagecoach {

struct ProtoField {
  enum class Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
  std::uint64_t number = 0;
  Wire wire = Wire::kVarint;
  std::uint64_t value = 0;  // of a number
  std::string_view bytes;   // of kBytes: points into the message

  bool is(std::uint64_t wanted, Wire form) const { return number == wanted && wire == form; }
};

// Never looks outside `message`, which must outlive it, and allocates nothing.
class ProtoReader {
 public:
  ProtoReader(std::string_view message, std::string where)
      : message_(message), where_(std::move(where)) {}

  // Empty at the end. Throws data_error naming the offset of what is malformed.
  std::optional<ProtoField> next();

 private:
  std::uint64_t varint();
  std::uint64_t fixed(std::size_t bytes);

  std::string_view message_;
  std::string where_;
  std::size_t position_ = 0;
};

// The writer's half: appends one field.
void append_proto_number(std::string& message, std::uint64_t number, std::uint64_t value);
void append_proto_float(std::string& message, std::uint64_t number, float value);
void append_proto_bytes(std::string& message, std::uint64_t number, std::string_view bytes);

}  // namespace stagecoach
