// The group layouts: where each quant lies, what is refused, and how good the quantisers are.
#include <algorithm>
#include <limits>
#include <random>

#include "conformance/kernels/kernel_test.h"
#include "kernels/include/pack.h"
#include "support_ggml_types.h"

namespace stagecoach {
namespace {

constexpr DType kQuantized[] = {DType::kQ8, DType::kQ4};

struct Packed {
  std::vector<std::byte> bytes;
  std::int64_t refused;
};

Packed pack(DType type, const Floats& source, std::int64_t rows, std::int64_t cols) {
  const Layout layout = matrix_layout(type);
  Packed packed{
      std::vector<std::byte>(static_cast<std::size_t>(layout_bytes(layout, type, rows, cols))), 0};
  packed.refused = pack_rows(layout, type, source.data(), rows, cols, packed.bytes.data());
  return packed;
}

Floats unpack(DType type, const Packed& packed, std::int64_t rows, std::int64_t cols) {
  Floats values(static_cast<std::size_t>(rows * cols));
  unpack_rows(matrix_layout(type), type, packed.bytes.data(), cols, 0, rows, values.data());
  return values;
}

// The same everywhere, unlike the standard library's distributions: sums of uniforms, nearly
// normal.
Floats bell(std::int64_t count, float deviation, std::uint32_t seed = 1) {
  std::mt19937 generator(seed);
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) {
    std::int64_t sum = 0;
    for (int i = 0; i < 12; ++i) sum += generator() >> 12;
    value = deviation * (static_cast<float>(sum) * 0x1p-20f - 6.0f);
  }
  return values;
}

double relative_error(const Floats& values, const Floats& stored) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double difference = static_cast<double>(values[i]) - static_cast<double>(stored[i]);
    error += difference * difference;
    size += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  return std::sqrt(error / size);
}

std::uint16_t half_at(const Packed& packed, std::int64_t offset) {
  std::uint16_t half;
  std::memcpy(&half, packed.bytes.data() + offset, sizeof half);
  return half;
}

// Quants that need the whole range, so that the scale can only be `scale` (a power of two).
Floats counting(std::int64_t rows, std::int64_t cols, int low, int high, float scale) {
  Floats values(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t k = 0; k < cols; ++k) {
      const std::int64_t range = high - low + 1;
      const std::int64_t step = k % kGroupCols == 0 ? 0 : (r * 5 + k * 7) % range;
      values[static_cast<std::size_t>(r * cols + k)] = static_cast<float>(low + step) * scale;
    }
  return values;
}

TEST(Quantize, EachQuantLiesWhereTheFormatSays) {
  const std::int64_t rows = 37, cols = 71, groups = 3;
  for (const DType type : kQuantized) {
    const bool q8 = type == DType::kQ8;
    const std::int64_t group_bytes = q8 ? 544 : 288;
    const Floats source = counting(rows, cols, q8 ? -127 : -8, q8 ? 127 : 7, 0.25f);
    const Packed packed = pack(type, source, rows, cols);
    ASSERT_EQ(static_cast<std::int64_t>(packed.bytes.size()), 3 * groups * group_bytes);
    for (std::int64_t r = 0; r < 48; ++r)
      for (std::int64_t k = 0; k < 96; ++k) {
        const std::int64_t group = (r / 16 * groups + k / 32) * group_bytes;
        const std::int64_t c = k % 32;
        ASSERT_EQ(half_at(packed, group + r % 16 * 2), r < rows ? f32_to_f16(0.25f) : 0);
        const std::int64_t byte =
            q8 ? c / 4 * 64 + r % 16 * 4 + c % 4 : c / 8 * 64 + r % 16 * 4 + c % 4;
        const int stored =
            std::to_integer<int>(packed.bytes[static_cast<std::size_t>(group + 32 + byte)]);
        const int quant =
            q8 ? static_cast<std::int8_t>(stored) : (c % 8 < 4 ? stored & 15 : stored >> 4) - 8;
        const float expected =
            r < rows && k < cols ? source[static_cast<std::size_t>(r * cols + k)] : 0.0f;
        ASSERT_EQ(static_cast<float>(quant) * 0.25f, expected) << "row " << r << " column " << k;
      }
    EXPECT_TRUE(same_bits(unpack(type, packed, rows, cols), source));
  }
}

TEST(Quantize, BlocksOfWholePanelsFollowEachOther) {
  const std::int64_t rows = 75, cols = 45;
  const Floats source = bell(rows * cols, 0.1f);
  for (const DType type : kQuantized) {
    const Packed whole = pack(type, source, rows, cols);
    std::vector<std::byte> joined;
    for (std::int64_t first = 0; first < rows; first += 32) {
      const std::int64_t count = std::min<std::int64_t>(32, rows - first);
      const Floats block(source.begin() + first * cols, source.begin() + (first + count) * cols);
      const Packed part = pack(type, block, count, cols);
      joined.insert(joined.end(), part.bytes.begin(), part.bytes.end());
    }
    EXPECT_EQ(joined, whole.bytes);
    const Floats values = unpack(type, whole, rows, cols);
    Floats part(static_cast<std::size_t>(9 * cols));
    unpack_rows(matrix_layout(type), type, whole.bytes.data(), cols, 20, 9, part.data());
    EXPECT_TRUE(same_bits(part, Floats(values.begin() + 20 * cols, values.begin() + 29 * cols)));
  }
}

// Half a step of the scale that puts the largest magnitude at 112, the coarsest that is tried; its
// own rounding to float16 widens it by 2⁻¹¹ at most, or in float16's subnormal range by 2⁻²⁵.
TEST(Quantize, Q8ErrsByHalfAStep) {
  const std::int64_t rows = 64, cols = 320;
  for (const float deviation : {1e-6f, 1e-4f, 0.02f, 1.0f, 1e5f}) {
    const Floats source = bell(rows * cols, deviation);
    const Floats stored = unpack(DType::kQ8, pack(DType::kQ8, source, rows, cols), rows, cols);
    for (std::size_t group = 0; group < source.size(); group += kGroupCols) {
      float largest = 0;
      for (std::size_t i = group; i < group + kGroupCols; ++i)
        largest = std::max(largest, std::abs(source[i]));
      const float step = largest / 112.0f * (1.0f + 0x1p-11f) + 0x1p-24f;
      for (std::size_t i = group; i < group + kGroupCols; ++i)
        ASSERT_LE(std::abs(source[i] - stored[i]), 0.5f * step * (1.0f + 1e-5f)) << source[i];
    }
  }
}

Floats long_tailed(std::int64_t count) {
  Floats values = bell(count, 1.0f, 7);
  for (float& value : values) value = value * value * value * 0.01f;
  return values;
}
Floats even(std::int64_t count) {
  std::mt19937 generator(5);
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values) value = static_cast<float>(generator()) * 0x1p-31f - 1.0f;
  return values;
}

// The error of `type`, relative to that of ggml's.
double error_of_plain(DType type, const Floats& source, std::int64_t rows, std::int64_t cols) {
  const double plain =
      relative_error(source, type == DType::kQ8 ? plain_q8_0(source) : plain_q4_0(source));
  return relative_error(source, unpack(type, pack(type, source, rows, cols), rows, cols)) / plain;
}

TEST(Quantize, ErrsLessThanGgmlsTypesOfAsManyBits) {
  const std::int64_t rows = 256, cols = 512;
  for (const Floats& source : {bell(rows * cols, 0.02f), bell(rows * cols, 3.0f, 2),
                               long_tailed(rows * cols), even(rows * cols)}) {
    EXPECT_LT(error_of_plain(DType::kQ8, source, rows, cols), 0.95);
    EXPECT_LT(error_of_plain(DType::kQ4, source, rows, cols), 0.995);
  }
  // Weights that were rounded once, to 16 levels a group with an offset, as in GGUF's Q4_1: some
  // scale of q8 fits their grid nearly.
  Floats rounded = bell(rows * cols, 0.02f);
  for (std::size_t group = 0; group < rounded.size(); group += 32) {
    const auto begin = rounded.begin() + static_cast<std::ptrdiff_t>(group);
    const float low = *std::min_element(begin, begin + 32);
    const float step = (*std::max_element(begin, begin + 32) - low) / 15.0f;
    for (auto i = begin; i != begin + 32; ++i) *i = low + std::round((*i - low) / step) * step;
  }
  EXPECT_LT(error_of_plain(DType::kQ8, rounded, rows, cols), 0.75);
  EXPECT_LT(error_of_plain(DType::kQ4, rounded, rows, cols), 0.995);
}

TEST(Quantize, CountsWhatItCannotHoldAndStoresZeroForIt) {
  const float inf = std::numeric_limits<float>::infinity();
  for (const DType type : kQuantized) {
    const float largest = type == DType::kQ8 ? 127.0f * 65504.0f : 8.0f * 65504.0f;
    const Floats source = {inf,    1.0f, std::nanf(""), -inf, 2.0f * largest,
                           -1e30f, 0.5f, largest,       0.0f, -largest};
    const Packed packed = pack(type, source, 2, 5);
    EXPECT_EQ(packed.refused, 5);
    const Floats stored = unpack(type, packed, 2, 5);
    for (const std::size_t i : {0, 2, 3, 4, 5}) EXPECT_EQ(stored[i], 0.0f);
    EXPECT_NEAR(stored[1], 1.0f, 0.01f);
    EXPECT_NEAR(stored[9], -largest, type == DType::kQ8 ? 1.0f : largest / 8);
  }
}

// Among float16's subnormals a scale errs by 2⁻²⁵, and a quant of −8 by eight times that.
TEST(Quantize, TinyWeightsBecomeZeroOrStayClose) {
  for (const DType type : kQuantized)
    for (const float size : {0.0f, 1e-45f, 1e-30f, 1e-8f, 1e-7f, 1e-6f}) {
      const Floats source = bell(16 * 32, size);
      const Floats stored = unpack(type, pack(type, source, 16, 32), 16, 32);
      for (std::size_t i = 0; i < source.size(); ++i)
        ASSERT_LE(std::abs(stored[i] - source[i]), 0.6f * size + 0x1p-22f);
    }
}

// The packed bytes of fixed weights: a store made on one PC is the store made on any other.
TEST(Quantize, BitsArePinned) {
  const Floats source = bell(48 * 96, 0.02f, 11);
  const auto fingerprint = [&](DType type) {
    std::uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
    for (const std::byte byte : pack(type, source, 48, 96).bytes)
      hash = (hash ^ std::to_integer<std::uint64_t>(byte)) * 0x100000001b3u;
    return hash;
  };
  EXPECT_EQ(fingerprint(DType::kQ8), 0xb697539c2c08c5b5u);
  EXPECT_EQ(fingerprint(DType::kQ4), 0x72389aba1e0ab1b9u);
}

}  // namespace
}  // namespace stagecoach
