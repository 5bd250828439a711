// exp and the functions made of it, per lane, from IEEE operations alone. Coefficients are minimax
// fits (Remez) over the stated intervals, rounded to float32.
#pragma once

#include "kernels/cpu/vec.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

template <int N>
inline Vec polynomial(Vec x, const float (&coefficients)[N]) {
  Vec sum = broadcast(coefficients[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = multiply_add(sum, x, broadcast(coefficients[i]));
  return sum;
}

// 2^n for integer n in [-126, 127].
inline Vec power_of_two(IntVec n) {
  return (Vec)((n + 127) << 23);
}

// Error below 1.1 ulp where the result is normal; subnormal results keep their precision, below
// them comes 0, above the range infinity. NaN stays NaN.
inline Vec exp(Vec x) {
  x = x < -104.0f ? broadcast(-104.0f) : x;
  x = x > 89.0f ? broadcast(89.0f) : x;
  // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
  const Vec rounder = broadcast(0x1.8p23f);
  const Vec shifted = multiply_add(x, broadcast(0x1.715476p+0f), rounder);
  const Vec n = shifted - rounder;
  const IntVec exponent = (IntVec)shifted - (IntVec)rounder;
  // ln 2 in two parts, the first short enough for n · hi to be exact without a fused multiply-add.
  Vec r = multiply_add(n, broadcast(-0x1.62ep-1f), x);
  r = multiply_add(n, broadcast(-0x1.0bfbe8p-15f), r);
  // e^r = 1 + r + r² P(r) on ±ln(2)/2, P to 6e-11.
  constexpr float kP[] = {0x1.000000p-1f, 0x1.555554p-3f,  0x1.555486p-5f,
                          0x1.111280p-7f, 0x1.6d945cp-10f, 0x1.9f02cap-13f};
  const Vec fraction = multiply_add(r * r, polynomial(r, kP), r) + 1.0f;
  // Two factors, since 2^n alone may be beyond the normal range at either end.
  const IntVec half = exponent >> 1;
  return fraction * power_of_two(half) * power_of_two(exponent - half);
}

// x · Φ(x), the exact GELU (Hendrycks & Gimpel 2016). erf near 0 by its odd polynomial; beyond, its
// complement erfc(z) = e^(-z²) u Q(u), u = 1 / (1 + z), so that the left tail keeps its relative
// precision instead of vanishing in 1 + erf.
inline Vec gelu_erf(Vec x) {
  constexpr float kErf[] = {0x1.20dd74p+0f, -0x1.81273ep-2f,  0x1.ce2cf8p-4f, -0x1.b7f90ep-6f,
                            0x1.5405b2p-8f, -0x1.a3f700p-11f, 0x1.496a32p-14f};  // z ≤ 1, to 1.3e-9
  constexpr float kErfc[] = {0x1.20dc58p-1f,  0x1.210a60p-1f,  0x1.1b2fb8p-2f, -0x1.e5207ep-3f,
                             -0x1.c4efc8p-1f, -0x1.3799acp-6f, 0x1.b4807cp+1f, -0x1.275c42p+2f,
                             0x1.01270ap+1f};  // z ≥ 0.95, to 1.6e-8
  const Vec z = x * 0x1.6a09e6p-1f;            // 1 / √2
  const Vec magnitude = z < 0.0f ? -z : z;
  const Vec square = z * z;
  const Vec near = 0.5f * multiply_add(z, polynomial(square, kErf), broadcast(1.0f));
  const Vec u = 1.0f / (magnitude + 1.0f);
  const Vec tail = 0.5f * exp(-square) * u * polynomial(u, kErfc);
  const Vec far = x < 0.0f ? tail : 1.0f - tail;
  return x * (magnitude < 1.0f ? near : far);
}

// x · σ(x).
inline Vec silu(Vec x) {
  return x / (exp(-x) + 1.0f);
}

// ½ x (1 + tanh u) = x · σ(2u), u = √(2/π) (x + 0.044715 x³): one exp, no tanh, no cancellation.
inline Vec gelu_tanh(Vec x) {
  const Vec u = 0x1.988454p-1f * x * multiply_add(x * x, broadcast(0.044715f), broadcast(1.0f));
  return x / (exp(-2.0f * u) + 1.0f);
}

inline Vec relu(Vec x) {
  return x < 0.0f ? Vec{} : x;
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
