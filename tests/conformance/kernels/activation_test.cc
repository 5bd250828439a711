#include <limits>

#include "conformance/kernels/kernel_test.h"

namespace stagecoach {
namespace {

constexpr Activation kKinds[] = {Activation::kGeluTanh, Activation::kGeluErf, Activation::kRelu,
                                 Activation::kSilu};

class ActivationTest : public KernelTest {
 protected:
  Floats run(const KernelTable& table, Activation kind, const Floats& x,
             const Floats* up = nullptr) {
    Floats y(x.size());
    const auto count = static_cast<std::int64_t>(x.size());
    table.activation({.x = x.data(),
                      .up = up != nullptr ? up->data() : nullptr,
                      .y = y.data(),
                      .count = count,
                      .kind = kind},
                     0, count);
    return y;
  }
};

TEST_P(ActivationTest, AgreesWithTheOracleFromTinyToHuge) {
  Floats x = {0.0f,  -0.0f,  1e-30f, -1e-30f, 1e4f,    -1e4f,
              1e20f, -1e20f, 88.0f,  -88.0f,  -103.0f, -200.0f};
  for (float value = -20.0f; value < 20.0f; value += 0.00137f) x.push_back(value);
  for (const Activation kind : kKinds) {
    const Floats y = run(kernels(), kind, x), expected = run(reference_kernels(), kind, x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      ASSERT_FALSE(std::isnan(y[i])) << "at " << x[i];
      // Some roundings of the result, and for the far left tails, where e^(-x²) multiplies the
      // rounding of its argument, some of x itself.
      const double allowed = 8 * kRoundoff * std::abs(static_cast<double>(expected[i])) +
                             kRoundoff * std::min(1.0, std::abs(static_cast<double>(x[i])));
      ASSERT_NEAR(y[i], expected[i], allowed)
          << "kind " << static_cast<int>(kind) << " at " << x[i];
    }
  }
}

TEST_P(ActivationTest, MultipliesByUpAndWorksInPlace) {
  const Floats x = random(103), up = random(103);
  for (const Activation kind : kKinds) {
    const Floats plain = run(kernels(), kind, x);
    Floats expected = plain;
    for (std::size_t i = 0; i < x.size(); ++i) expected[i] *= up[i];
    EXPECT_TRUE(same_bits(run(kernels(), kind, x, &up), expected));
    Floats in_place = x;
    kernels().activation(
        {.x = in_place.data(), .up = up.data(), .y = in_place.data(), .count = 103, .kind = kind},
        0, 103);
    EXPECT_TRUE(same_bits(in_place, expected));
  }
}

TEST_P(ActivationTest, SplitsChangeNoBit) {
  const Floats x = random(211, 3.0f);
  for (const Activation kind : kKinds) {
    const Floats whole = run(kernels(), kind, x);
    Floats y(x.size());
    for (std::int64_t begin = 0; begin < 211;) {
      const std::int64_t end = uniform(begin + 1, std::min<std::int64_t>(begin + 30, 211));
      kernels().activation(
          {.x = x.data(), .up = nullptr, .y = y.data(), .count = 211, .kind = kind}, begin, end);
      begin = end;
    }
    EXPECT_TRUE(same_bits(y, whole));
  }
}

TEST_P(ActivationTest, NanStaysNan) {
  const Floats x(20, std::numeric_limits<float>::quiet_NaN());
  for (const Activation kind : kKinds)
    for (const float value : run(kernels(), kind, x)) EXPECT_TRUE(std::isnan(value));
}

STAGECOACH_EVERY_ISA(ActivationTest);

}  // namespace
}  // namespace stagecoach
