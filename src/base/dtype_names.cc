#include "base/dtype_names.h"

namespace stagecoach {

std::string_view dtype_name(DType type) {
  switch (type) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kQ8:
      return "q8";
    case DType::kQ4:
      return "q4";
  }
  return "?";
}

std::optional<DType> parse_dtype(std::string_view name) {
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4})
    if (dtype_name(type) == name) return type;
  return std::nullopt;
}

std::string_view layout_name(Layout layout) {
  switch (layout) {
    case Layout::kRows:
      return "rows.v1";
    case Layout::kPanels16:
      return "p16.v1";
    case Layout::kQ8Groups32:
      return "q8.g32.v1";
    case Layout::kQ4Groups32:
      return "q4.g32.v1";
  }
  return "?";
}

std::optional<Layout> parse_layout(std::string_view name) {
  for (Layout layout : {Layout::kRows, Layout::kPanels16, Layout::kQ8Groups32, Layout::kQ4Groups32})
    if (layout_name(layout) == name) return layout;
  return std::nullopt;
}

}  // namespace stagecoach
