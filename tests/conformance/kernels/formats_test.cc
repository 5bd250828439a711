// Storage types, layouts and portable functions: what files and kernels agree on.
#include <algorithm>
#include <limits>
#include <random>

#include "conformance/kernels/kernel_test.h"
#include "kernels/include/pack.h"
#include "kernels/include/portable_math.h"

namespace stagecoach {
namespace {

bool is_nan16(std::uint32_t half) {
  return (half & 0x7fffu) > 0x7c00u;
}

TEST(Dtype, EveryHalfConvertsExactlyAndBack) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    const float value = f16_to_f32(static_cast<std::uint16_t>(half));
    const int exponent = static_cast<int>((half >> 10) & 0x1f);
    const double mantissa = half & 0x3ff;
    if (is_nan16(half)) {
      ASSERT_TRUE(std::isnan(value));
      ASSERT_TRUE(is_nan16(f32_to_f16(value)));
      continue;
    }
    const double magnitude = exponent == 0x1f ? std::numeric_limits<double>::infinity()
                             : exponent == 0  ? std::ldexp(mantissa, -24)
                                              : std::ldexp(1024 + mantissa, exponent - 25);
    ASSERT_EQ(value, (half & 0x8000u) != 0 ? -magnitude : magnitude) << half;
    ASSERT_EQ(f32_to_f16(value), half);
  }
}

TEST(Dtype, EveryBrainFloatConvertsBack) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = bf16_to_f32(static_cast<std::uint16_t>(bits));
    if (std::isnan(value))
      ASSERT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
    else
      ASSERT_EQ(f32_to_bf16(value), bits);
  }
}

// The nearest of all finite halves, ties to the even one, by search.
std::uint16_t nearest_half(float value) {
  const double magnitude = std::abs(static_cast<double>(value));
  std::uint16_t low = 0, high = 0x7c00;  // 0x7c00 stands for 65536 while rounding
  const auto at = [](std::uint16_t half) {
    return half == 0x7c00 ? 65536.0 : static_cast<double>(f16_to_f32(half));
  };
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (at(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - at(low), above = at(high) - magnitude;
  const std::uint16_t nearest = below < above || (below == above && low % 2 == 0) ? low : high;
  return static_cast<std::uint16_t>(nearest | (std::signbit(value) ? 0x8000u : 0u));
}

TEST(Dtype, HalfRoundsToNearestEven) {
  std::mt19937 generator(7);
  for (int i = 0; i < 300000; ++i) {
    const auto bits = static_cast<std::uint32_t>(generator());
    // Exponents around the half's range, all mantissas.
    const std::uint32_t exponent = 100 + (bits >> 23) % 45;
    const float value = std::bit_cast<float>((bits & 0x807fffffu) | (exponent << 23));
    ASSERT_EQ(f32_to_f16(value), nearest_half(value)) << value;
  }
  for (std::uint32_t half = 0; half < 0x7c00; ++half) {  // ties and their neighbours
    const float low = f16_to_f32(static_cast<std::uint16_t>(half));
    const float high = half == 0x7bff ? 65536.0f : f16_to_f32(static_cast<std::uint16_t>(half + 1));
    const float middle = low + (high - low) / 2;
    for (const float value : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)})
      ASSERT_EQ(f32_to_f16(value), nearest_half(value)) << value;
  }
  EXPECT_EQ(f32_to_f16(1e30f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-std::numeric_limits<float>::infinity()), 0xfc00);
}

TEST(Dtype, BrainFloatRoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie, even below
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // tie, even above
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(Pack, PanelsHoldEachElementWhereTheFormulaSaysAndPadWithZero) {
  const std::int64_t rows = 37, cols = 11;
  Floats source(static_cast<std::size_t>(rows * cols));
  for (std::size_t i = 0; i < source.size(); ++i) source[i] = static_cast<float>(i + 1);
  Floats packed(
      static_cast<std::size_t>(layout_bytes(Layout::kPanels16, DType::kF32, rows, cols)) / 4,
      -1.0f);
  EXPECT_EQ(packed.size(), 48u * 11u);
  EXPECT_EQ(pack_rows(Layout::kPanels16, DType::kF32, source.data(), rows, cols,
                      reinterpret_cast<std::byte*>(packed.data())),
            0);
  for (std::int64_t r = 0; r < 48; ++r)
    for (std::int64_t k = 0; k < cols; ++k)
      ASSERT_EQ(packed[static_cast<std::size_t>(r / 16 * 16 * cols + k * 16 + r % 16)],
                r < rows ? source[static_cast<std::size_t>(r * cols + k)] : 0.0f);
}

TEST(Pack, RoundTripsInEveryTypeAndLayoutByBlocksOfRows) {
  std::mt19937 generator(3);
  std::normal_distribution<float> normal;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
    for (const Layout layout : {Layout::kRows, Layout::kPanels16}) {
      const std::int64_t rows = 75, cols = 13;
      Floats source(static_cast<std::size_t>(rows * cols));
      for (float& value : source) {
        value = normal(generator);
        if (type == DType::kF16) value = f16_to_f32(f32_to_f16(value));
        if (type == DType::kBF16) value = bf16_to_f32(f32_to_bf16(value));
      }
      std::vector<std::byte> packed(
          static_cast<std::size_t>(layout_bytes(layout, type, rows, cols)));
      for (std::int64_t first = 0; first < rows; first += 32)
        EXPECT_EQ(pack_rows(layout, type, source.data() + first * cols,
                            std::min<std::int64_t>(32, rows - first), cols,
                            packed.data() + layout_bytes(layout, type, first, cols)),
                  0);
      for (std::int64_t first = 0; first < rows; first += 7) {
        const std::int64_t count = std::min<std::int64_t>(9, rows - first);
        Floats part(static_cast<std::size_t>(count * cols));
        unpack_rows(layout, type, packed.data(), cols, first, count, part.data());
        EXPECT_TRUE(same_bits(
            part, Floats(source.begin() + first * cols, source.begin() + (first + count) * cols)));
      }
    }
}

TEST(Pack, CountsFiniteValuesThatOverflow) {
  const float inf = std::numeric_limits<float>::infinity();
  const Floats source = {1e6f, -7e4f, 65504.0f, inf, std::nanf(""), 1.0f};
  std::vector<std::byte> packed(1024);
  for (const Layout layout : {Layout::kRows, Layout::kPanels16}) {
    EXPECT_EQ(pack_rows(layout, DType::kF16, source.data(), 2, 3, packed.data()), 2);
    EXPECT_EQ(pack_rows(layout, DType::kBF16, source.data(), 2, 3, packed.data()), 0);
    EXPECT_EQ(pack_rows(layout, DType::kF32, source.data(), 2, 3, packed.data()), 0);
  }
}

// Distance in units of the last place of `expected`.
double ulps(double actual, long double expected) {
  const auto rounded = static_cast<double>(expected);
  if (actual == rounded) return 0;
  const double unit = std::nextafter(std::abs(rounded), 1e308) - std::abs(rounded);
  return static_cast<double>(std::abs(static_cast<long double>(actual) - expected) / unit);
}

TEST(PortableMath, ExpWithinTwoUlp) {
  std::mt19937_64 generator(1);
  std::uniform_real_distribution<double> wide(-745.0, 709.7), near(-1.0, 1.0);
  double worst = 0;
  for (int i = 0; i < 300000; ++i)
    for (const double x : {wide(generator), near(generator)})
      worst = std::max(worst, ulps(portable_exp(x), std::exp(static_cast<long double>(x))));
  EXPECT_LT(worst, 2.0);
  EXPECT_EQ(portable_exp(0.0), 1.0);
  EXPECT_EQ(portable_exp(800.0), std::numeric_limits<double>::infinity());
  EXPECT_EQ(portable_exp(-800.0), 0.0);
  EXPECT_TRUE(std::isnan(portable_exp(std::nan(""))));
}

TEST(PortableMath, LogWithinTwoUlp) {
  std::mt19937_64 generator(2);
  std::uniform_real_distribution<double> exponent(-1070.0, 1023.0), near(0.5, 2.0);
  double worst = 0;
  for (int i = 0; i < 300000; ++i)
    for (const double x : {std::exp2(exponent(generator)), near(generator)})
      worst = std::max(worst, ulps(portable_log(x), std::log(static_cast<long double>(x))));
  EXPECT_LT(worst, 2.0);
  EXPECT_EQ(portable_log(1.0), 0.0);
  EXPECT_EQ(portable_log(0.0), -std::numeric_limits<double>::infinity());
  EXPECT_TRUE(std::isnan(portable_log(-1.0)));
  EXPECT_EQ(portable_log(std::numeric_limits<double>::infinity()),
            std::numeric_limits<double>::infinity());
}

TEST(PortableMath, SinCosWithinTwoUlpUpToTwoToTheThirty) {
  std::mt19937_64 generator(3);
  std::uniform_real_distribution<double> wide(-0x1p30, 0x1p30), near(-10.0, 10.0),
      exponent(-40.0, 30.0);
  double worst = 0;
  const auto check = [&](double x) {
    double sin_x, cos_x;
    portable_sincos(x, &sin_x, &cos_x);
    worst = std::max({worst, ulps(sin_x, std::sin(static_cast<long double>(x))),
                      ulps(cos_x, std::cos(static_cast<long double>(x)))});
  };
  for (int i = 0; i < 200000; ++i) {
    check(wide(generator));
    check(near(generator));
    check(std::exp2(exponent(generator)));
  }
  // Next to multiples of π/2, where almost everything cancels.
  for (double n = 1; n < 6e8; n = std::floor(n * 1.001) + 1)
    for (const double toward : {0.0, 1e10}) check(std::nextafter(n * (M_PI / 2), toward));
  EXPECT_LT(worst, 2.0);
  double sin_x, cos_x;
  for (const double x : {1.1e9, -2e9, std::nan(""), std::numeric_limits<double>::infinity()}) {
    portable_sincos(x, &sin_x, &cos_x);
    EXPECT_TRUE(std::isnan(sin_x) && std::isnan(cos_x));
  }
}

TEST(Dispatch, ListsBestFirstWithScalarLast) {
  const IsaList isas = supported_isas();
  ASSERT_GE(isas.count, 1);
  EXPECT_STREQ(isas.names[isas.count - 1], "scalar");
  for (int i = 0; i < isas.count; ++i) {
    const KernelTable* table = kernel_table(isas.names[i]);
    ASSERT_NE(table, nullptr);
    EXPECT_STREQ(table->isa, isas.names[i]);
  }
  EXPECT_EQ(kernel_table("sse9"), nullptr);
}

}  // namespace
}  // namespace stagecoach
