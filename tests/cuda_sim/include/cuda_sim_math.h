// Arithmetic and bit intrinsics. Where a device approximates, the value here is the exact one,
// rounded once: a test that needs more than the documented error of a device fails there, not here.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "vector_types.h"

inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
// The device's fast division gives 0 for divisors above 2¹²⁶.
inline float __fdividef(float a, float b) {
  if (std::fabs(b) > 0x1p126f && std::isfinite(b)) return std::isinf(a) ? NAN : 0.0f;
  return a / b;
}
inline float __expf(float a) {
  return static_cast<float>(std::exp(static_cast<double>(a)));
}
inline float __exp2f(float a) {
  return static_cast<float>(std::exp2(static_cast<double>(a)));
}
inline float __logf(float a) {
  return static_cast<float>(std::log(static_cast<double>(a)));
}
inline float rsqrtf(float a) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a)));
}

inline int __float_as_int(float a) {
  return std::bit_cast<int>(a);
}
inline unsigned __float_as_uint(float a) {
  return std::bit_cast<unsigned>(a);
}
inline float __int_as_float(int a) {
  return std::bit_cast<float>(a);
}
inline float __uint_as_float(unsigned a) {
  return std::bit_cast<float>(a);
}
inline int __float2int_rn(float a) {
  return static_cast<int>(std::nearbyint(a));
}
inline float __int2float_rn(int a) {
  return static_cast<float>(a);
}
inline float __uint2float_rn(unsigned a) {
  return static_cast<float>(a);
}

inline int __popc(unsigned a) {
  return std::popcount(a);
}
inline int __popcll(unsigned long long a) {
  return std::popcount(a);
}
inline int __clz(int a) {
  return std::countl_zero(static_cast<unsigned>(a));
}
inline int __clzll(long long a) {
  return std::countl_zero(static_cast<unsigned long long>(a));
}
inline int __ffs(int a) {
  return a == 0 ? 0 : std::countr_zero(static_cast<unsigned>(a)) + 1;
}

// Result byte i is byte (selector nibble i & 7) of y:x; the nibble's top bit spreads its sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = (static_cast<std::uint64_t>(y) << 32) | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = (selector >> (4 * i)) & 0xfu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7u))) & 0xffu;
    if ((nibble & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}

// c + the four products of bytes, modulo 2³².
inline int __dp4a(int a, int b, int c) {
  unsigned sum = static_cast<unsigned>(c);
  for (int shift = 0; shift < 32; shift += 8) {
    const int x = static_cast<std::int8_t>(a >> shift);
    const int y = static_cast<std::int8_t>(b >> shift);
    sum += static_cast<unsigned>(x * y);
  }
  return static_cast<int>(sum);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int shift = 0; shift < 32; shift += 8) c += ((a >> shift) & 0xffu) * ((b >> shift) & 0xffu);
  return c;
}
inline int __dp4a(char4 a, char4 b, int c) {
  return __dp4a(std::bit_cast<int>(a), std::bit_cast<int>(b), c);
}
inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned c) {
  return __dp4a(std::bit_cast<unsigned>(a), std::bit_cast<unsigned>(b), c);
}

// CUDA's overloads: mixed signs compare as unsigned; of a number and a NaN, the number.
#define CUDA_SIM_MIN_MAX(R, A, B)                                                         \
  inline R min(A a, B b) {                                                                \
    return static_cast<R>(a) < static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }                                                                                       \
  inline R max(A a, B b) {                                                                \
    return static_cast<R>(a) > static_cast<R>(b) ? static_cast<R>(a) : static_cast<R>(b); \
  }
#define CUDA_SIM_MIN_MAX_SIGNS(S, U) \
  CUDA_SIM_MIN_MAX(S, S, S)          \
  CUDA_SIM_MIN_MAX(U, U, U)          \
  CUDA_SIM_MIN_MAX(U, S, U)          \
  CUDA_SIM_MIN_MAX(U, U, S)
CUDA_SIM_MIN_MAX_SIGNS(int, unsigned)
CUDA_SIM_MIN_MAX_SIGNS(long, unsigned long)
CUDA_SIM_MIN_MAX_SIGNS(long long, unsigned long long)
#undef CUDA_SIM_MIN_MAX_SIGNS
#undef CUDA_SIM_MIN_MAX
#define CUDA_SIM_FLOAT_MIN_MAX(R, A, B)                     \
  inline R min(A a, B b) {                                  \
    return std::fmin(static_cast<R>(a), static_cast<R>(b)); \
  }                                                         \
  inline R max(A a, B b) {                                  \
    return std::fmax(static_cast<R>(a), static_cast<R>(b)); \
  }
CUDA_SIM_FLOAT_MIN_MAX(float, float, float)
CUDA_SIM_FLOAT_MIN_MAX(double, double, double)
CUDA_SIM_FLOAT_MIN_MAX(double, float, double)
CUDA_SIM_FLOAT_MIN_MAX(double, double, float)
#undef CUDA_SIM_FLOAT_MIN_MAX
