// Conversions and intrinsics, which also run on the host.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace {

static_assert(sizeof(__half) == 2 && sizeof(__half2) == 4 && alignof(__half2) == 4);
static_assert(sizeof(__nv_bfloat162) == 4 && alignof(float4) == 16 && alignof(float2) == 8);
static_assert(alignof(uchar4) == 4 && sizeof(uint3) == 12 && alignof(int4) == 16);

// By arithmetic, not by bits.
float half_value(unsigned bits) {
  const unsigned exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                              : std::ldexp(static_cast<float>(1024 + mantissa),
                                           static_cast<int>(exponent) - 25);
  if (exponent == 31) value = mantissa != 0 ? NAN : INFINITY;
  return (bits & 0x8000) != 0 ? -value : value;
}

TEST(Intrinsics, AllHalvesConvert) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const __half half = __ushort_as_half(static_cast<unsigned short>(bits));
    const float value = __half2float(half), want = half_value(bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(value));
      ASSERT_TRUE(std::isnan(__half2float(__float2half_rn(value))));
      continue;
    }
    ASSERT_EQ(std::bit_cast<unsigned>(value), std::bit_cast<unsigned>(want));
    ASSERT_EQ(__half_as_ushort(__float2half_rn(value)), bits);
  }
}

TEST(Intrinsics, AllBfloatsConvert) {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const __nv_bfloat16 number = __ushort_as_bfloat16(static_cast<unsigned short>(bits));
    const float value = __bfloat162float(number);
    ASSERT_EQ(std::bit_cast<unsigned>(value), bits << 16);
    if (!std::isnan(value)) {
      ASSERT_EQ(__bfloat16_as_ushort(__float2bfloat16_rn(value)), bits);
    }
  }
}

TEST(Intrinsics, HalvesRoundToNearestEven) {
  for (unsigned bits = 0; bits < 0x7bff; ++bits) {
    const float low = half_value(bits), high = half_value(bits + 1);
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(__half_as_ushort(__float2half_rn(middle)), bits + (bits & 1));
    ASSERT_EQ(__half_as_ushort(__float2half_rn(std::nextafter(middle, high))), bits + 1);
    ASSERT_EQ(__half_as_ushort(__float2half_rn(std::nextafter(middle, low))), bits);
  }
}

TEST(Intrinsics, PairsRoundOnce) {
  // 1 + 2⁻¹¹ is a tie; the product's tail of 2⁻²² and less must decide it.
  const __half one = 1.0f, tiny = __ushort_as_half(1), next = 1.0f + 0x1p-10f;
  const __half half_ulp = 0x1p-11f;
  EXPECT_EQ(static_cast<float>(__hfma2({one, one}, {half_ulp, half_ulp}, {one, one}).x), 1.0f);
  EXPECT_EQ(static_cast<float>(__hfma(next, half_ulp, one)), 1.0f + 0x1p-10f);
  EXPECT_EQ(static_cast<float>(__hadd2({one, one}, {tiny, tiny}).y), 1.0f);
  EXPECT_EQ(static_cast<float>(__hmul2({next, one}, {next, tiny}).x), 1.0f + 0x1p-9f);
  const __nv_bfloat16 big = 1.0f + 0x1p-7f, small = 0x1p-8f, least = 0x1p-120f;
  EXPECT_EQ(static_cast<float>(__hfma(big, small, least)), std::bit_cast<float>(0x3b810000u));
  EXPECT_EQ(static_cast<float>(__hfma(__nv_bfloat16(1.0f), small, __nv_bfloat16(1.0f))), 1.0f);
  EXPECT_EQ(static_cast<float>(__hadd(__hmul(one, one), one)), 2.0f);
  const float2 both = __half22float2(__floats2half2_rn(1.5f, -2.0f));
  EXPECT_EQ(both.x, 1.5f);
  EXPECT_EQ(both.y, -2.0f);
  EXPECT_EQ(__low2float(__floats2bfloat162_rn(3.0f, 4.0f)), 3.0f);
  EXPECT_EQ(__high2float(__float22bfloat162_rn(make_float2(3.0f, 4.0f))), 4.0f);
}

TEST(Intrinsics, BytesAreMultipliedAndPermuted) {
  EXPECT_EQ(__dp4a(0x01ff80fe, 0x02037f05, 100), 100 + 1 * 2 + -1 * 3 + -128 * 127 + -2 * 5);
  EXPECT_EQ(__dp4a(0x01ff80feu, 0x02037f05u, 100u), 100u + 2 + 255 * 3 + 128 * 127 + 254 * 5);
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x6420u), 0x66442200u);
  EXPECT_EQ(__byte_perm(0x80u, 0u, 0x4448u), 0xffu);
  EXPECT_EQ(__popc(0xf0f0u), 8);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(0), 32);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__float_as_uint(-0.0f), 0x80000000u);
}

TEST(Intrinsics, MinimumAndMaximumAreCudas) {
  EXPECT_EQ(max(-1, 1u), 0xffffffffu);
  EXPECT_EQ(min(2ll, 3ll), 2);
  EXPECT_EQ(max(NAN, 2.0f), 2.0f);
  EXPECT_EQ(min(1.0f, NAN), 1.0f);
  EXPECT_EQ(min(1.5, 1.0f), 1.0);
  EXPECT_EQ(rsqrtf(4.0f), 0.5f);
  EXPECT_EQ(__fmaf_rn(1.0f + 0x1p-12f, 1.0f + 0x1p-12f, -1.0f), 0x1p-11f + 0x1p-24f);
}

}  // namespace
