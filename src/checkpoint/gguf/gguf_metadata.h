// The key-value pairs of a GGUF file (https://github.com/ggml-org/ggml, docs/gguf.md). Values stay
// in the bytes they came in, since a vocabulary as strings takes several times its size in the
// file; they are decoded when asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace stagecoach {

// Numbers as in the file.
enum class GgufType : std::uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
inline constexpr std::uint32_t kGgufTypes = 13;

// Bytes of a value; 0 for strings and arrays, whose length stands in the file.
std::size_t gguf_type_bytes(GgufType type);

class GgufMetadata {
 public:
  // Where a value lies. A scalar is one element.
  struct Place {
    GgufType element = GgufType::kU8;
    bool array = false;
    std::uint64_t count = 1;
    std::size_t offset = 0;
  };
  using Places = std::map<std::string, Place, std::less<>>;

  // `bytes` holds every value that `places` names in full; `where` is the file, for errors.
  GgufMetadata(std::string where, std::vector<std::byte> bytes, Places places)
      : where_(std::move(where)), bytes_(std::move(bytes)), places_(std::move(places)) {}

  const std::string& where() const { return where_; }
  const Places& places() const { return places_; }
  bool has(std::string_view key) const { return places_.contains(key); }

  // These throw data_error naming file and key when the key is missing or holds something else.
  // Any type of integer will do for an integer and any number for a number: writers differ.
  std::int64_t integer(std::string_view key) const;  // 0 to 2^63 - 1
  double number(std::string_view key) const;         // finite
  bool boolean(std::string_view key) const;
  std::string string(std::string_view key) const;                // valid UTF-8
  std::vector<std::string> strings(std::string_view key) const;  // bytes as they are
  std::vector<std::int64_t> integers(std::string_view key) const;
  std::vector<float> numbers(std::string_view key) const;

  // A number, truth value or string as JSON. An array counts as its element where all are the same:
  // some writers repeat a setting for every layer. Throws where layers differ.
  Json setting(std::string_view key) const;

 private:
  const Place& at(std::string_view key) const;
  const Place& array_at(std::string_view key) const;
  std::string name(std::string_view key) const;
  std::string_view text(std::size_t& offset) const;  // and moves on to the next
  Json scalar(GgufType type, std::size_t offset) const;
  std::string_view type_name(const Place& place) const;

  std::string where_;
  std::vector<std::byte> bytes_;
  Places places_;
};

}  // namespace stagecoach
