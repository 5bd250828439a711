#include "conformance/kernels/kernel_test.h"
#include "kernels/include/portable_math.h"

namespace stagecoach {
namespace {

class NormTest : public KernelTest {};

TEST_P(NormTest, AgreesWithTheOracle) {
  for (const std::int64_t cols : {1, 2, 7, 8, 15, 31, 33, 64, 100, 257, 768, 4099})
    for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm})
      for (const float offset : {0.0f, 30.0f}) {
        const std::int64_t rows = 3;
        Floats x = random(rows * cols);
        for (float& value : x) value += offset;
        const Floats weight = random(cols), bias = random(cols);
        Floats y(x.size()), expected(x.size());
        NormArgs args = {.x = x.data(),
                         .weight = weight.data(),
                         .bias = kind == NormKind::kLayerNorm ? bias.data() : nullptr,
                         .y = expected.data(),
                         .rows = rows,
                         .cols = cols,
                         .epsilon = 1e-5f,
                         .kind = kind};
        reference_kernels().norm(args, 0, rows);
        args.y = y.data();
        kernels().norm(args, 0, rows);
        // The mean errs by some roundings of the offset, which the scale (at most 1/√ε for one
        // column, about 1 for many) multiplies.
        const double scale = cols < 4 ? 320.0 : 4.0;
        for (std::size_t i = 0; i < y.size(); ++i) {
          const double w = std::abs(weight[i % static_cast<std::size_t>(cols)]);
          const double magnitude = std::abs(expected[i]) + w * scale * (1.0 + offset) + 1.0;
          ASSERT_NEAR(y[i], expected[i], 16 * kRoundoff * magnitude)
              << "cols " << cols << " at " << i;
        }
      }
}

TEST_P(NormTest, RowDoesNotDependOnItsPlace) {
  const std::int64_t rows = 5, cols = 77;
  const Floats one = random(cols), weight = random(cols);
  Floats x;
  for (std::int64_t r = 0; r < rows; ++r) x.insert(x.end(), one.begin(), one.end());
  Floats y(x.size());
  const NormArgs args = {.x = x.data(),
                         .weight = weight.data(),
                         .bias = nullptr,
                         .y = y.data(),
                         .rows = rows,
                         .cols = cols,
                         .epsilon = 1e-6f,
                         .kind = NormKind::kLayerNorm};
  kernels().norm(args, 0, 2);
  kernels().norm(args, 2, rows);
  for (std::int64_t r = 1; r < rows; ++r)
    EXPECT_TRUE(same_bits(Floats(y.begin(), y.begin() + cols),
                          Floats(y.begin() + r * cols, y.begin() + (r + 1) * cols)));
}

STAGECOACH_EVERY_ISA(NormTest);

class RotaryTest : public KernelTest {};

TEST_P(RotaryTest, RotatesTheLeadingDimensionsOnly) {
  struct Shape {
    std::int64_t rows, heads, head_dim, rotary_dim;
  };
  for (const Shape& s : {Shape{1, 1, 2, 2},
                         {3, 2, 8, 4},
                         {5, 3, 20, 20},
                         {2, 4, 64, 32},
                         {7, 2, 128, 128},
                         {4, 3, 80, 34},
                         {2, 1, 6, 0}}) {
    const std::int64_t half = s.rotary_dim / 2, stride = s.heads * s.head_dim + 3;
    Floats inv_freq(static_cast<std::size_t>(half)), cos(static_cast<std::size_t>(s.rows * half)),
        sin = cos;
    for (std::int64_t i = 0; i < half; ++i)
      inv_freq[static_cast<std::size_t>(i)] =
          static_cast<float>(std::pow(1e4, -static_cast<double>(i) / half));
    std::vector<std::int64_t> positions;
    for (std::int64_t r = 0; r < s.rows; ++r) positions.push_back(uniform(0, 100000));
    rotary_table(positions.data(), s.rows, inv_freq.data(), half, cos.data(), sin.data());

    const Floats x = random(s.rows * stride);
    Floats y = x, expected = x;
    RotaryArgs args = {.x = expected.data(),
                       .x_stride = stride,
                       .cos = cos.data(),
                       .sin = sin.data(),
                       .rows = s.rows,
                       .heads = s.heads,
                       .head_dim = s.head_dim,
                       .rotary_dim = s.rotary_dim};
    reference_kernels().rotary(args, 0, s.rows);
    args.x = y.data();
    kernels().rotary(args, 0, s.rows);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const auto column = static_cast<std::int64_t>(i) % stride;
      if (column >= s.heads * s.head_dim || column % s.head_dim >= s.rotary_dim)
        ASSERT_EQ(y[i], x[i]) << "touched element " << i;
      else
        ASSERT_NEAR(y[i], expected[i], 4 * kRoundoff * 6.0);
    }
  }
}

STAGECOACH_EVERY_ISA(RotaryTest);

TEST(RotaryTable, RoundsTheProductToFloatFirst) {
  const std::int64_t positions[] = {0, 1, 12345, 1000000};
  const float inv_freq[] = {1.0f, 0.1f, 0.0316227766f};
  float cos[12], sin[12];
  rotary_table(positions, 4, inv_freq, 3, cos, sin);
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 3; ++i) {
      const float angle = static_cast<float>(positions[r]) * inv_freq[i];
      EXPECT_NEAR(cos[r * 3 + i], std::cos(static_cast<double>(angle)), kRoundoff);
      EXPECT_NEAR(sin[r * 3 + i], std::sin(static_cast<double>(angle)), kRoundoff);
    }
}

}  // namespace
}  // namespace stagecoach
