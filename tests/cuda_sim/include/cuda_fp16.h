// Stand-in for CUDA's header of this name. Every operation rounds exactly once, as devices do, by
// the conversions of kernels/include/dtype.h.
#pragma once

#include "cuda_runtime.h"
#include "cuda_sim_rounding.h"
#include "kernels/include/dtype.h"

struct alignas(2) __half {
  __half() = default;
  __half(float value) : bits_(stagecoach::f32_to_f16(value)) {}
  operator float() const { return stagecoach::f16_to_f32(bits_); }

  static __half from_bits(unsigned short bits) {
    __half result;
    result.bits_ = bits;
    return result;
  }
  unsigned short bits() const { return bits_; }

 private:
  unsigned short bits_;
};
struct alignas(4) __half2 {
  __half x, y;
  __half2() = default;
  __half2(__half low, __half high) : x(low), y(high) {}
};
using half = __half;
using half2 = __half2;

inline __half __float2half(float a) {
  return __half(a);
}
inline __half __float2half_rn(float a) {
  return __half(a);
}
inline float __half2float(__half a) {
  return a;
}
inline __half __ushort_as_half(unsigned short bits) {
  return __half::from_bits(bits);
}
inline unsigned short __half_as_ushort(__half a) {
  return a.bits();
}
inline __half2 __halves2half2(__half low, __half high) {
  return {low, high};
}
inline __half2 make_half2(__half low, __half high) {
  return {low, high};
}
inline __half2 __half2half2(__half a) {
  return {a, a};
}
inline __half2 __float2half2_rn(float a) {
  return {__half(a), __half(a)};
}
inline __half2 __floats2half2_rn(float low, float high) {
  return {__half(low), __half(high)};
}
inline __half2 __float22half2_rn(float2 a) {
  return {__half(a.x), __half(a.y)};
}
inline float2 __half22float2(__half2 a) {
  return {a.x, a.y};
}
inline __half __low2half(__half2 a) {
  return a.x;
}
inline __half __high2half(__half2 a) {
  return a.y;
}
inline float __low2float(__half2 a) {
  return a.x;
}
inline float __high2float(__half2 a) {
  return a.y;
}

inline __half __hadd(__half a, __half b) {
  return __half(
      cuda_sim::narrow_to_odd(cuda_sim::add_to_odd(static_cast<float>(a), static_cast<float>(b))));
}
inline __half __hsub(__half a, __half b) {
  return __half(
      cuda_sim::narrow_to_odd(cuda_sim::add_to_odd(static_cast<float>(a), -static_cast<float>(b))));
}
inline __half __hmul(__half a, __half b) {
  return __half(cuda_sim::narrow_to_odd(static_cast<double>(a) * static_cast<double>(b)));
}
inline __half __hfma(__half a, __half b, __half c) {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  return __half(cuda_sim::narrow_to_odd(cuda_sim::add_to_odd(product, static_cast<double>(c))));
}
inline __half2 __hadd2(__half2 a, __half2 b) {
  return {__hadd(a.x, b.x), __hadd(a.y, b.y)};
}
inline __half2 __hsub2(__half2 a, __half2 b) {
  return {__hsub(a.x, b.x), __hsub(a.y, b.y)};
}
inline __half2 __hmul2(__half2 a, __half2 b) {
  return {__hmul(a.x, b.x), __hmul(a.y, b.y)};
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __half operator+(__half a, __half b) {
  return __hadd(a, b);
}
inline __half operator-(__half a, __half b) {
  return __hsub(a, b);
}
inline __half operator*(__half a, __half b) {
  return __hmul(a, b);
}
