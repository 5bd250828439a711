#include "kernels/include/portable_math.h"

#include <bit>
#include <cstdint>
#include <limits>

namespace stagecoach {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Adding 1.5 · 2⁵² rounds to the nearest integer, ties to even.
constexpr double kRounder = 0x1.8p52;

// ln 2 in two parts; the first has 32 bits after the point, so that n · kLn2High is exact for |n| <
// 2¹¹.
constexpr double kLn2High = 0x1.62e42feep-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;

constexpr double power_of_two(std::int64_t n) {  // n in [-1022, 1023]
  return std::bit_cast<double>(static_cast<std::uint64_t>(n + 1023) << 52);
}

// Σ coefficients[i] · x^i.
template <int N>
constexpr double polynomial(double x, const double (&coefficients)[N]) {
  double sum = coefficients[N - 1];
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// high + low is exactly a + b (Knuth).
struct DoubleDouble {
  double high, low;
};
constexpr DoubleDouble two_sum(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  return {sum, (a - (sum - b_part)) + (b - b_part)};
}

// sin and cos of r.high + r.low, |r| ≤ π/4 and a little, by Taylor's series; the low part enters to
// first order.
double sin_near_zero(DoubleDouble r) {
  constexpr double kTerms[] = {
      -1.0 / 6,        1.0 / 120,          -1.0 / 5040,         1.0 / 362880,
      -1.0 / 39916800, 1.0 / 6227020800.0, -1.0 / 1307674368e3, 1.0 / 355687428096e3};
  const double square = r.high * r.high;
  const double tail = r.high * square * polynomial(square, kTerms);
  return r.high + (tail + r.low * (1.0 - 0.5 * square));
}

double cos_near_zero(DoubleDouble r) {
  constexpr double kTerms[] = {1.0 / 24,           -1.0 / 720,      1.0 / 40320,
                               -1.0 / 3628800,     1.0 / 479001600, -1.0 / 87178291200.0,
                               1.0 / 20922789888e3};
  const double square = r.high * r.high;
  const double half = 0.5 * square;
  const double leading = 1.0 - half;
  const double lost = (1.0 - leading) - half;  // what rounding took from `leading`
  return leading + (lost + (square * square * polynomial(square, kTerms) - r.high * r.low));
}

// x − n π/2. π/2 stands in four parts of at most 23 bits, whose products with n < 2³⁰ are exact,
// and a last one of full precision: 147 bits in all, enough for the x nearest to a multiple of π/2.
DoubleDouble reduce(double x, double n) {
  constexpr double kParts[] = {0x1.921fb4p+0, 0x1.4442dp-24, 0x1.846988p-48, 0x1.8cc514p-72,
                               0x1.80dc1cd129025p-95};
  DoubleDouble rest = {x, 0.0};
  for (const double part : kParts) {
    const DoubleDouble sum = two_sum(rest.high, -n * part);
    rest = {sum.high, rest.low + sum.low};
  }
  return two_sum(rest.high, rest.low);
}

}  // namespace

double portable_exp(double x) {
  if (x != x) return x;
  if (x > 709.79) return kInfinity;
  if (x < -745.2) return 0.0;
  const double n = (x * 0x1.71547652b82fep+0 + kRounder) - kRounder;
  const double high = x - n * kLn2High;
  const double low = n * kLn2Low;
  const double r = high - low;
  const double lost = (high - r) - low;
  // Taylor: the first term left out, r¹⁴ / 14!, is below 2⁻⁵⁷ of the result.
  constexpr double kTerms[] = {1.0 / 2,       1.0 / 6,        1.0 / 24,        1.0 / 120,
                               1.0 / 720,     1.0 / 5040,     1.0 / 40320,     1.0 / 362880,
                               1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800.0};
  const double fraction = 1.0 + (r + (r * r * polynomial(r, kTerms) + lost));
  // Two factors, since 2^n alone may be outside the normal range.
  const std::int64_t exponent = static_cast<std::int64_t>(n);
  const std::int64_t half = exponent / 2;
  return fraction * power_of_two(half) * power_of_two(exponent - half);
}

double portable_log(double x) {
  if (x != x || x == kInfinity) return x;
  if (x == 0.0) return -kInfinity;
  if (x < 0.0) return kNan;
  double exponent = 0.0;
  if (x < 0x1p-1022) {
    x *= 0x1p54;
    exponent = -54.0;
  }
  // x = 2^exponent · m, m in [√½, √2), so that log m is small where the exponent is 0.
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  exponent += static_cast<double>(static_cast<std::int64_t>(bits >> 52) - 1023);
  double m = std::bit_cast<double>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    exponent += 1.0;
  }
  // log(1 + f) = 2 atanh(s), s = f / (2 + f), arranged so that f, the largest term, enters
  // unrounded: 2s = f − s f and s f = f²/2 − s f²/2 give f − (f²/2 − s (f²/2 + series)).
  const double f = m - 1.0;
  const double s = f / (2.0 + f);
  const double square = s * s;
  constexpr double kTerms[] = {2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                               2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
  const double series = square * polynomial(square, kTerms);
  const double half_square = 0.5 * f * f;
  const double correction = s * (half_square + series) + exponent * kLn2Low;
  return exponent * kLn2High - ((half_square - correction) - f);
}

void portable_sincos(double x, double* sin_x, double* cos_x) {
  if (!(x >= -0x1p30 && x <= 0x1p30)) {
    *sin_x = *cos_x = kNan;
    return;
  }
  const double n = (x * 0x1.45f306dc9c883p-1 + kRounder) - kRounder;
  const DoubleDouble r = reduce(x, n);
  const double s = sin_near_zero(r);
  const double c = cos_near_zero(r);
  switch (static_cast<std::int64_t>(n) & 3) {
    case 0:
      *sin_x = s, *cos_x = c;
      break;
    case 1:
      *sin_x = c, *cos_x = -s;
      break;
    case 2:
      *sin_x = -s, *cos_x = -c;
      break;
    default:
      *sin_x = -c, *cos_x = s;
      break;
  }
}

}  // namespace stagecoach
