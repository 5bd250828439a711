// Packed activations: bit for bit what the oracle makes of them.
#include <cstring>
#include <limits>

#include "conformance/kernels/kernel_test.h"

namespace stagecoach {
namespace {

class PackInputTest : public KernelTest {
 protected:
  static std::vector<std::byte> pack(const KernelTable& table, const Floats& x, std::int64_t rows,
                                     std::int64_t cols, InputType type) {
    std::vector<std::byte> packed(static_cast<std::size_t>(rows * packed_row_stride(type, cols)));
    table.pack_input({.x = x.data(),
                      .x_stride = static_cast<std::int64_t>(x.size()) / rows,
                      .packed = packed.data(),
                      .rows = rows,
                      .cols = cols,
                      .type = type},
                     0, rows);
    return packed;
  }

  void expect_as_oracle(const Floats& x, std::int64_t rows, std::int64_t cols) {
    for (const InputType type : {InputType::kF32, InputType::kBF16, InputType::kInt8}) {
      const auto actual = pack(kernels(), x, rows, cols, type);
      const auto expected = pack(reference_kernels(), x, rows, cols, type);
      for (std::size_t i = 0; i < actual.size(); ++i)
        ASSERT_EQ(actual[i], expected[i])
            << "byte " << i << " of " << cols << " columns, type " << static_cast<int>(type);
    }
  }
};

TEST_P(PackInputTest, AgreesWithTheOracleOverAwkwardWidths) {
  for (const std::int64_t cols : {1, 2, 15, 16, 31, 32, 33, 47, 64, 95, 500}) {
    Floats x = random(3 * (cols + 7));
    expect_as_oracle(x, 3, cols);
    for (float& value : x) value *= 1e30f;
    expect_as_oracle(x, 3, cols);
    for (float& value : x) value *= 1e-38f;
    expect_as_oracle(x, 3, cols);
  }
}

// Halves round to even, the largest is ±127, groups of nothing stay nothing, and what is not finite
// shows in the whole group.
TEST_P(PackInputTest, QuantisesTheEdgesOfItsRange) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float special : {0.0f, -0.0f, 1e-40f, 0x1p-101f, 0x1p-100f, 3.4e38f, -3.4e38f,
                              kInfinity, -kInfinity, std::nanf("")}) {
    Floats x(70, 0.0f);
    x[40] = special;
    x[41] = 0.5f;
    x[65] = special;
    expect_as_oracle(x, 1, 70);
  }
  Floats halves(32, 0.0f);
  for (std::size_t i = 0; i < 32; ++i) halves[i] = static_cast<float>(i) - 15.5f;
  halves[31] = 127.0f;
  expect_as_oracle(halves, 1, 32);
  const auto packed = pack(kernels(), halves, 1, 32, InputType::kInt8);
  InputGroup group;
  std::memcpy(&group, packed.data(), sizeof group);
  EXPECT_EQ(group.scale, 1.0f);
  EXPECT_EQ(group.quant[0], -16);
  EXPECT_EQ(group.quant[1], -14);
  EXPECT_EQ(group.quant[16], 0);
  EXPECT_EQ(group.quant[31], 127);
}

STAGECOACH_EVERY_ISA(PackInputTest);

}  // namespace
}  // namespace stagecoach
