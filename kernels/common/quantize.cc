#include "kernels/common/quantize.h"

#include <algorithm>
#include <cstring>

#include "kernels/include/pack.h"

#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace stagecoach {
namespace {

// Four rows at once in the compiler's own vector types: the baseline of every processor.
constexpr int kLanes = 4;
using Vec = float __attribute__((vector_size(4 * kLanes)));
using IntVec = std::int32_t __attribute__((vector_size(4 * kLanes)));
constexpr int kPanelVecs = kPanelRows / kLanes;

constexpr float kLargestHalf = 65504.0f;
// Adding 1.5 · 2²³ rounds to the nearest integer, ties to even, which then stands in the low bits.
constexpr float kRounder = 0x1.8p23f;

// 32 columns of a panel, rows side by side: what the quantisers work on.
struct Block {
  Vec columns[kGroupCols][kPanelVecs];
};

constexpr std::int64_t kScaleBytes = kPanelRows * 2;

// The columns of word b of a row, and where in the word column j of them stands.
struct Q8 {
  static constexpr int kWordCols = 4;
  static constexpr int kLow = -127, kHigh = 127;
  static constexpr float kLargest = kLargestHalf * 127.0f;
  static constexpr int shift(int j) { return 8 * j; }
  static IntVec encode(IntVec quants) { return quants & 255; }
  static int decode(std::uint32_t word, int j) {
    return static_cast<std::int8_t>(word >> shift(j));
  }
  // Errors at neighbouring levels have little to do with each other, so that the best of many is
  // well below their mean; and weights that were rounded once, to a grid of their own, may fit one.
  static constexpr float kLevels[] = {127, 126, 125, 124, 123, 122, 121, 120,
                                      119, 118, 117, 116, 115, 114, 113, 112};
  static Vec extreme(const Block& block, int v);  // its magnitude
  static std::uint16_t half_scale(float extreme, float level);
};
struct Q4 {
  static constexpr int kWordCols = 8;
  static constexpr int kLow = -8, kHigh = 7;
  static constexpr float kLargest = kLargestHalf * 8.0f;
  static constexpr int shift(int j) { return j < 4 ? 8 * j : 8 * (j - 4) + 4; }
  static IntVec encode(IntVec quants) { return (quants + 8) & 15; }
  static int decode(std::uint32_t word, int j) {
    return static_cast<int>(word >> shift(j) & 15u) - 8;
  }
  // −8 has the finest steps; the others suit groups whose largest weights differ in sign.
  static constexpr float kLevels[] = {-8, 7, -7, 6, -6, 5};
  static Vec extreme(const Block& block, int v);
  static std::uint16_t half_scale(float extreme, float level);
};

template <typename Type>
constexpr std::int64_t kGroupBytes = kScaleBytes + kPanelRows * 4 * (kGroupCols / Type::kWordCols);

Vec broadcast(float value) {
  return value - Vec{};
}
// a < b ? a : b and a > b ? a : b, each one instruction: GCC 12 makes four of ?: on vectors, and
// clamping is half of the work here.
Vec smaller(Vec a, Vec b) {
#ifdef __SSE__
  return (Vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}
Vec larger(Vec a, Vec b) {
#ifdef __SSE__
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Quants of `weights` as floats plus kRounder, for 1 / scale.
template <typename Type>
Vec shifted_quants(Vec weights, Vec inverse) {
  const Vec scaled = weights * inverse;
  return smaller(larger(scaled, broadcast(Type::kLow)), broadcast(Type::kHigh)) + kRounder;
}

// The scale that puts a weight on a level, in float16.
std::uint16_t scale_to_f16(float weight, float level) {
  return f32_to_f16(std::clamp(weight / level, -kLargestHalf, kLargestHalf));
}

// Scales that put a group's `extreme`, its weight of largest magnitude, on each of the type's
// levels, as float16 holds them: the one with the smallest squared error. Of equal ones the first,
// and zero where none is better than zeros.
//
// Only such scales: one in between can make the squared error smaller still, but costs a model more
// than it saves (docs/quantization.md).
template <typename Type>
void choose_scales(const Block& block, int v, std::uint16_t* scales) {
  const Vec extreme = Type::extreme(block, v);
  Vec best_error = {};  // of zeros
  for (const auto& column : block.columns) best_error += column[v] * column[v];
  std::fill_n(scales, kLanes, std::uint16_t{0});
  for (const float level : Type::kLevels) {
    std::uint16_t halves[kLanes];
    Vec scale = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      halves[lane] = Type::half_scale(extreme[lane], level);
      scale[lane] = f16_to_f32(halves[lane]);
    }
    const Vec inverse = scale == 0.0f ? Vec{} : 1.0f / scale;
    Vec error = {};
    for (const auto& column : block.columns) {
      const Vec quant = shifted_quants<Type>(column[v], inverse) - kRounder;
      const Vec difference = column[v] - quant * scale;
      error += difference * difference;
    }
    for (int lane = 0; lane < kLanes; ++lane)
      if (error[lane] < best_error[lane]) scales[lane] = halves[lane];
    best_error = smaller(error, best_error);
  }
}

Vec Q8::extreme(const Block& block, int v) {
  Vec largest = {};
  for (const auto& column : block.columns)  // in an order that keeps +0 of +0 and −0
    largest = larger(larger(column[v], -column[v]), largest);
  return largest;
}

std::uint16_t Q8::half_scale(float extreme, float level) {
  std::uint16_t half = scale_to_f16(extreme, level);
  // Among float16's subnormals rounding down can cost more range than half a step.
  if (f16_to_f32(half) * 127.5f < extreme) ++half;
  return half;
}

std::uint16_t Q4::half_scale(float extreme, float level) {
  return scale_to_f16(extreme, level);
}

Vec Q4::extreme(const Block& block, int v) {
  Vec low = {}, high = {};
  for (const auto& column : block.columns) {
    low = smaller(low, column[v]);
    high = larger(high, column[v]);
  }
  return high > -low ? high : low;
}

// Rows [0, rows) of 16 and columns [k, k + count) of 32 from `source`, the others zero, and so are
// values that the type cannot hold, which are counted.
std::int64_t load_block(const float* source, std::int64_t rows, std::int64_t cols, std::int64_t k,
                        float largest, Block& block) {
  const std::int64_t count = std::min(kGroupCols, cols - k);
  if (rows < kPanelRows || count < kGroupCols) block = {};
  float* const values = reinterpret_cast<float*>(&block);
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t c = 0; c < count; ++c)
      values[c * kPanelRows + row] = source[row * cols + k + c];
  IntVec refused = {};
  for (auto& column : block.columns)
    for (Vec& weights : column) {
      const IntVec held = (weights <= largest) & (weights >= -largest);
      refused += held + 1;  // true is −1
      weights = (Vec)((IntVec)weights & held);
    }
  std::int64_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += refused[lane];
  return sum;
}

template <typename Type>
void pack_block(const Block& block, std::byte* destination) {
  std::uint16_t scales[kPanelRows];
  for (int v = 0; v < kPanelVecs; ++v) {
    std::uint16_t* const scale = scales + v * kLanes;
    choose_scales<Type>(block, v, scale);
    Vec inverse = {};
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = f16_to_f32(scale[lane]);
      inverse[lane] = value == 0.0f ? 0.0f : 1.0f / value;
    }
    constexpr int kWords = kGroupCols / Type::kWordCols;
    for (int b = 0; b < kWords; ++b) {
      IntVec word = {};
      for (int j = 0; j < Type::kWordCols; ++j) {
        const Vec shifted =
            shifted_quants<Type>(block.columns[b * Type::kWordCols + j][v], inverse);
        word |= Type::encode((IntVec)shifted) << Type::shift(j);  // kRounder's low bits are zero
      }
      std::memcpy(destination + kScaleBytes + (b * kPanelRows + v * kLanes) * 4, &word,
                  sizeof word);
    }
  }
  std::memcpy(destination, scales, sizeof scales);
}

template <typename Type>
std::int64_t pack_typed(const float* source, std::int64_t rows, std::int64_t cols,
                        std::byte* destination) {
  std::int64_t refused = 0;
  Block block;
  for (std::int64_t first = 0; first < rows; first += kPanelRows)
    for (std::int64_t k = 0; k < cols; k += kGroupCols, destination += kGroupBytes<Type>) {
      refused += load_block(source + first * cols, std::min(kPanelRows, rows - first), cols, k,
                            Type::kLargest, block);
      pack_block<Type>(block, destination);
    }
  return refused;
}

template <typename Type>
void unpack_row(const std::byte* panel, std::int64_t lane, std::int64_t cols, float* destination) {
  for (std::int64_t k = 0; k < cols; k += kGroupCols, panel += kGroupBytes<Type>) {
    std::uint16_t half;
    std::memcpy(&half, panel + lane * 2, sizeof half);
    const float scale = f16_to_f32(half);
    const std::int64_t count = std::min(kGroupCols, cols - k);
    for (std::int64_t c = 0; c < count; ++c) {
      std::uint32_t word;
      std::memcpy(&word, panel + kScaleBytes + (c / Type::kWordCols * kPanelRows + lane) * 4,
                  sizeof word);
      const int quant = Type::decode(word, static_cast<int>(c % Type::kWordCols));
      destination[k + c] = static_cast<float>(quant) * scale;
    }
  }
}

template <typename Type>
void unpack_typed(const std::byte* packed, std::int64_t cols, std::int64_t row_begin,
                  std::int64_t rows, float* destination) {
  const std::int64_t panel_bytes = (cols + kGroupCols - 1) / kGroupCols * kGroupBytes<Type>;
  for (std::int64_t r = row_begin; r < row_begin + rows; ++r, destination += cols)
    unpack_row<Type>(packed + r / kPanelRows * panel_bytes, r % kPanelRows, cols, destination);
}

static_assert(kGroupBytes<Q8> == layout_bytes(Layout::kQ8Groups32, DType::kQ8, 16, 32));
static_assert(kGroupBytes<Q4> == layout_bytes(Layout::kQ4Groups32, DType::kQ4, 16, 32));

}  // namespace

std::int64_t pack_groups(DType type, const float* source, std::int64_t rows, std::int64_t cols,
                         std::byte* destination) {
  return type == DType::kQ8 ? pack_typed<Q8>(source, rows, cols, destination)
                            : pack_typed<Q4>(source, rows, cols, destination);
}

void unpack_groups(DType type, const std::byte* packed, std::int64_t cols, std::int64_t row_begin,
                   std::int64_t rows, float* destination) {
  if (type == DType::kQ8) return unpack_typed<Q8>(packed, cols, row_begin, rows, destination);
  unpack_typed<Q4>(packed, cols, row_begin, rows, destination);
}

}  // namespace stagecoach
