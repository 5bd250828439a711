#include "kernels/include/pack.h"

#include <cmath>
#include <cstring>

#include "kernels/common/quantize.h"

namespace stagecoach {
namespace {

struct F32 {
  using Element = float;
  static float from(float value) { return value; }
  static float to(float value) { return value; }
  static bool is_infinite(float value) { return std::isinf(value); }
};
struct F16 {
  using Element = std::uint16_t;
  static std::uint16_t from(float value) { return f32_to_f16(value); }
  static float to(std::uint16_t value) { return f16_to_f32(value); }
  static bool is_infinite(std::uint16_t value) { return (value & 0x7fffu) == 0x7c00u; }
};
struct BF16 {
  using Element = std::uint16_t;
  static std::uint16_t from(float value) { return f32_to_bf16(value); }
  static float to(std::uint16_t value) { return bf16_to_f32(value); }
  static bool is_infinite(std::uint16_t value) { return (value & 0x7fffu) == 0x7f80u; }
};

// Packed bytes may lie at any address inside a file's buffer.
template <typename Type>
void store(std::byte* packed, std::int64_t index, typename Type::Element value) {
  std::memcpy(packed + index * static_cast<std::int64_t>(sizeof value), &value, sizeof value);
}

template <typename Type>
float load(const std::byte* packed, std::int64_t index) {
  typename Type::Element value;
  std::memcpy(&value, packed + index * static_cast<std::int64_t>(sizeof value), sizeof value);
  return Type::to(value);
}

template <typename Type>
std::int64_t convert(float value, typename Type::Element& result) {
  result = Type::from(value);
  return Type::is_infinite(result) && !std::isinf(value) ? 1 : 0;
}

template <typename Type>
std::int64_t pack_plain(const float* source, std::int64_t count, std::byte* destination) {
  std::int64_t overflows = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    typename Type::Element value;
    overflows += convert<Type>(source[i], value);
    store<Type>(destination, i, value);
  }
  return overflows;
}

template <typename Type>
std::int64_t pack_panels(const float* source, std::int64_t rows, std::int64_t cols,
                         std::byte* destination) {
  std::int64_t overflows = 0;
  for (std::int64_t first = 0; first < rows; first += kPanelRows)
    for (std::int64_t k = 0; k < cols; ++k)
      for (std::int64_t lane = 0; lane < kPanelRows; ++lane) {
        typename Type::Element value = 0;
        if (first + lane < rows)
          overflows += convert<Type>(source[(first + lane) * cols + k], value);
        store<Type>(destination, first * cols + k * kPanelRows + lane, value);
      }
  return overflows;
}

template <typename Type>
std::int64_t pack_typed(Layout layout, const float* source, std::int64_t rows, std::int64_t cols,
                        std::byte* destination) {
  if (layout == Layout::kRows) return pack_plain<Type>(source, rows * cols, destination);
  return pack_panels<Type>(source, rows, cols, destination);
}

template <typename Type>
void unpack_typed(Layout layout, const std::byte* packed, std::int64_t cols, std::int64_t row_begin,
                  std::int64_t rows, float* destination) {
  const std::int64_t step = layout == Layout::kRows ? 1 : kPanelRows;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t row = row_begin + r;
    const std::int64_t first = layout == Layout::kRows
                                   ? row * cols
                                   : row / kPanelRows * kPanelRows * cols + row % kPanelRows;
    for (std::int64_t k = 0; k < cols; ++k)
      destination[r * cols + k] = load<Type>(packed, first + k * step);
  }
}

}  // namespace

std::int64_t pack_rows(Layout layout, DType type, const float* source, std::int64_t rows,
                       std::int64_t cols, std::byte* destination) {
  if (!layout_holds(layout, type)) __builtin_trap();
  switch (type) {
    case DType::kF32:
      return pack_typed<F32>(layout, source, rows, cols, destination);
    case DType::kF16:
      return pack_typed<F16>(layout, source, rows, cols, destination);
    case DType::kBF16:
      return pack_typed<BF16>(layout, source, rows, cols, destination);
    case DType::kQ8:
    case DType::kQ4:
      return pack_groups(type, source, rows, cols, destination);
  }
  __builtin_unreachable();
}

void unpack_rows(Layout layout, DType type, const std::byte* packed, std::int64_t cols,
                 std::int64_t row_begin, std::int64_t rows, float* destination) {
  if (!layout_holds(layout, type)) __builtin_trap();
  switch (type) {
    case DType::kF32:
      return unpack_typed<F32>(layout, packed, cols, row_begin, rows, destination);
    case DType::kF16:
      return unpack_typed<F16>(layout, packed, cols, row_begin, rows, destination);
    case DType::kBF16:
      return unpack_typed<BF16>(layout, packed, cols, row_begin, rows, destination);
    case DType::kQ8:
    case DType::kQ4:
      return unpack_groups(type, packed, cols, row_begin, rows, destination);
  }
}

}  // namespace stagecoach
