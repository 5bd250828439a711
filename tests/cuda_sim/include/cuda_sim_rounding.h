// One rounding where arithmetic in a wider type would round twice: the wider result is rounded to
// odd, which keeps the information that the second rounding needs.
#pragma once

#include <bit>
#include <cstdint>

namespace cuda_sim {

// a + b to 53 bits, rounded to odd.
inline double add_to_odd(double a, double b) {
  const double sum = a + b;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  const auto bits = std::bit_cast<std::uint64_t>(sum);
  if (!(error < 0 || error > 0) || (bits & 1) != 0) return sum;
  return std::bit_cast<double>((error > 0) == (sum > 0) ? bits + 1 : bits - 1);
}

// To 24 bits, rounded to odd; what follows rounds to fewer.
inline float narrow_to_odd(double value) {
  const float nearest = static_cast<float>(value);
  const auto bits = std::bit_cast<std::uint32_t>(nearest);
  const double back = static_cast<double>(nearest);
  if (!(back < value || back > value) || (bits & 1) != 0) return nearest;
  return std::bit_cast<float>((value > back) == (value > 0) ? bits + 1 : bits - 1);
}

}  // namespace cuda_sim
