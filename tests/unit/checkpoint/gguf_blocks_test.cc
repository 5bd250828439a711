// Blocks of every quantised type against what the gguf package decodes them to
// (scripts/make_gguf_golden.py): the same bits.
#include "checkpoint/gguf/gguf_blocks.h"

#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/gguf/gguf.h"

namespace stagecoach {
namespace {

std::vector<std::byte> content(const StoredTensor& tensor) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes));
  tensor.file->read_at(tensor.offset, bytes);
  return bytes;
}

class GgufBlocks : public testing::TestWithParam<BlockFormat> {};

TEST_P(GgufBlocks, DecodeToTheBitsOfTheGgufPackage) {
  const GgufCheckpoint fixture = read_gguf(std::string(TEST_DATA_DIR) + "/gguf/blocks.gguf");
  const std::string name(block_format_name(GetParam()));
  const StoredTensor& stored = fixture.set.tensors.at(name);
  ASSERT_EQ(stored.format, GetParam());
  const std::vector<std::byte> expected = content(fixture.set.tensors.at(name + ".values"));
  std::vector<float> values(expected.size() / sizeof(float));
  ASSERT_EQ(stored.shape, (std::vector<std::int64_t>{1, static_cast<std::int64_t>(values.size())}));
  // Off by one byte: blocks stand at any address.
  std::vector<std::byte> blocks = content(stored);
  blocks.insert(blocks.begin(), std::byte{0});
  decode_blocks(GetParam(), blocks.data() + 1, static_cast<std::int64_t>(values.size()),
                values.data());
  for (std::size_t i = 0; i < values.size(); ++i) {
    float reference;
    std::memcpy(&reference, expected.data() + i * sizeof(float), sizeof(float));
    ASSERT_EQ(std::bit_cast<std::uint32_t>(values[i]), std::bit_cast<std::uint32_t>(reference))
        << name << " element " << i << ": " << values[i] << ", expected " << reference;
  }
}

TEST_P(GgufBlocks, AreStoredAsF16ByDefault) {
  EXPECT_EQ(native_weights(GetParam()), DType::kF16);
}

INSTANTIATE_TEST_SUITE_P(Formats, GgufBlocks,
                         testing::Values(BlockFormat::kQ8_0, BlockFormat::kQ4_0, BlockFormat::kQ4_1,
                                         BlockFormat::kQ5_0, BlockFormat::kQ5_1, BlockFormat::kQ2_K,
                                         BlockFormat::kQ3_K, BlockFormat::kQ4_K, BlockFormat::kQ5_K,
                                         BlockFormat::kQ6_K),
                         [](const auto& test) {
                           return std::string(block_format_name(test.param));
                         });

}  // namespace
}  // namespace stagecoach
