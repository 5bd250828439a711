// Writes small checkpoints, honest and hostile, for tests.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "kernels/include/dtype.h"
#include "support_temporary_folder.h"

namespace stagecoach::test {

inline void write_bytes(const std::filesystem::path& path, std::string_view content) {
  std::ofstream(path, std::ios::binary) << content;
}

struct RawTensor {
  std::string name, dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

inline std::int64_t element_count(const std::vector<std::int64_t>& shape) {
  std::int64_t count = 1;
  for (const std::int64_t dimension : shape) count *= dimension;
  return count;
}

// `values` in row-major order, rounded to the type.
inline RawTensor make_tensor(const std::string& name, DType type,
                             const std::vector<std::int64_t>& shape,
                             const std::vector<float>& values) {
  RawTensor tensor{name,
                   type == DType::kF32   ? "F32"
                   : type == DType::kF16 ? "F16"
                                         : "BF16",
                   shape,
                   {}};
  for (const float value : values) {
    const std::uint16_t half = type == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
    if (type == DType::kF32) {
      tensor.bytes.append(reinterpret_cast<const char*>(&value), 4);
    } else {
      tensor.bytes.append(reinterpret_cast<const char*>(&half), 2);
    }
  }
  return tensor;
}

// first, first + 1, … : every element tells where it came from.
inline RawTensor counting_tensor(const std::string& name, DType type,
                                 const std::vector<std::int64_t>& shape, float first = 0) {
  std::vector<float> values(static_cast<std::size_t>(element_count(shape)));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = first + static_cast<float>(i);
  return make_tensor(name, type, shape, values);
}

// The bytes of a file with this header text, whatever it says, and this data.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

// Tensors in the order given, deliberately without any alignment.
inline void write_safetensors(const std::filesystem::path& path,
                              const std::vector<RawTensor>& tensors) {
  Json header = Json::object();
  header["__metadata__"] = {{"format", "pt"}};
  std::string data;
  for (const RawTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  write_bytes(path, safetensors_bytes(header.dump(), data));
}

}  // namespace stagecoach::test
