// Writes GGUF files, honest and hostile, for tests.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/gguf/gguf_metadata.h"
#include "support_safetensors.h"

namespace stagecoach::test {

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(T)};
}

inline std::string gguf_string(std::string_view text) {
  return raw<std::uint64_t>(text.size()) + std::string(text);
}

// Dimensions as in the file: innermost first.
struct GgufTensor {
  std::string name;
  std::vector<std::uint64_t> dimensions;
  std::uint32_t type = 0;  // F32
  std::string bytes;
  std::int64_t offset = -1;  // -1: the next aligned place
};

// Public fields, so that a test can spoil any of them before bytes() is called.
struct GgufWriter {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::int64_t claimed_tensors = -1, claimed_pairs = -1;  // -1: as many as there are
  std::size_t alignment = 32;
  std::vector<std::string> pairs;
  std::vector<GgufTensor> tensors;

  template <typename T>
  GgufWriter& add(std::string_view key, GgufType type, T value) {
    return add_raw(key, type, raw(value));
  }
  GgufWriter& add(std::string_view key, std::string_view value) {
    return add_raw(key, GgufType::kString, gguf_string(value));
  }
  GgufWriter& add(std::string_view key, std::uint32_t value) {
    return add(key, GgufType::kU32, value);
  }
  GgufWriter& add(std::string_view key, float value) { return add(key, GgufType::kF32, value); }
  GgufWriter& add_array(std::string_view key, GgufType type, std::uint64_t count,
                        const std::string& elements) {
    return add_raw(key, GgufType::kArray, raw(type) + raw(count) + elements);
  }
  GgufWriter& add_raw(std::string_view key, GgufType type, const std::string& value) {
    pairs.push_back(gguf_string(key) + raw(type) + value);
    return *this;
  }

  std::string bytes() const {
    const auto counted = [](std::int64_t claimed, std::size_t actual) {
      return raw<std::uint64_t>(claimed < 0 ? actual : static_cast<std::uint64_t>(claimed));
    };
    std::string text = magic + raw(version) + counted(claimed_tensors, tensors.size()) +
                       counted(claimed_pairs, pairs.size());
    for (const std::string& pair : pairs) text += pair;
    std::string data;
    for (const GgufTensor& tensor : tensors) {
      if (tensor.offset < 0) pad(data);
      text += gguf_string(tensor.name) +
              raw<std::uint32_t>(static_cast<std::uint32_t>(tensor.dimensions.size()));
      for (const std::uint64_t dimension : tensor.dimensions) text += raw(dimension);
      const std::uint64_t offset =
          tensor.offset < 0 ? data.size() : static_cast<std::uint64_t>(tensor.offset);
      text += raw(tensor.type) + raw(offset);
      data += tensor.bytes;
    }
    pad(text);
    return text + data;
  }

 private:
  void pad(std::string& text) const {
    text.resize((text.size() + alignment - 1) / alignment * alignment);
  }
};

}  // namespace stagecoach::test
