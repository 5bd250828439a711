#include "checkpoint/gguf/gguf_types.h"

#include <algorithm>
#include <vector>

namespace stagecoach {
namespace {

GgufTensorType weights(std::uint32_t id, BlockFormat format) {
  const BlockShape shape = block_shape(format);
  return {id, block_format_name(format), shape.elements, shape.bytes, format};
}

// Numbers that no weight is made of; a file that carries a table of them still opens.
GgufTensorType numbers(std::uint32_t id, std::string_view name, std::int64_t bytes) {
  return {id, name, 1, bytes, std::nullopt};
}

GgufTensorType unreadable(std::uint32_t id, std::string_view name) {
  return {id, name, 1, 0, std::nullopt};
}

const std::vector<GgufTensorType>& types() {
  using enum BlockFormat;
  static const std::vector<GgufTensorType> all = {
      weights(0, kF32),
      weights(1, kF16),
      weights(30, kBF16),
      weights(8, kQ8_0),
      weights(2, kQ4_0),
      weights(3, kQ4_1),
      weights(6, kQ5_0),
      weights(7, kQ5_1),
      weights(10, kQ2_K),
      weights(11, kQ3_K),
      weights(12, kQ4_K),
      weights(13, kQ5_K),
      weights(14, kQ6_K),
      numbers(24, "I8", 1),
      numbers(25, "I16", 2),
      numbers(26, "I32", 4),
      numbers(27, "I64", 8),
      numbers(28, "F64", 8),
      unreadable(4, "Q4_2, withdrawn"),
      unreadable(5, "Q4_3, withdrawn"),
      unreadable(9, "Q8_1"),
      unreadable(15, "Q8_K"),
      unreadable(16, "IQ2_XXS"),
      unreadable(17, "IQ2_XS"),
      unreadable(18, "IQ3_XXS"),
      unreadable(19, "IQ1_S"),
      unreadable(20, "IQ4_NL"),
      unreadable(21, "IQ3_S"),
      unreadable(22, "IQ2_S"),
      unreadable(23, "IQ4_XS"),
      unreadable(29, "IQ1_M"),
      unreadable(31, "Q4_0_4_4, withdrawn"),
      unreadable(32, "Q4_0_4_8, withdrawn"),
      unreadable(33, "Q4_0_8_8, withdrawn"),
      unreadable(34, "TQ1_0"),
      unreadable(35, "TQ2_0"),
      unreadable(39, "MXFP4"),
      unreadable(40, "NVFP4"),
      unreadable(41, "Q1_0"),
      unreadable(42, "Q2_0"),
  };
  return all;
}

}  // namespace

const GgufTensorType* find_gguf_tensor_type(std::uint32_t id) {
  const auto found = std::find_if(types().begin(), types().end(),
                                  [id](const GgufTensorType& type) { return type.id == id; });
  return found == types().end() ? nullptr : &*found;
}

std::string gguf_tensor_type_names() {
  std::string names;
  for (const GgufTensorType& type : types())
    if (type.format) names += (names.empty() ? "" : ", ") + std::string(type.name);
  return names;
}

}  // namespace stagecoach
