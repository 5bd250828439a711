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
  }
  return "?";
}

std::optional<DType> parse_dtype(std::string_view name) {
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16})
    if (dtype_name(type) == name) return type;
  return std::nullopt;
}

std::string_view layout_name(Layout layout) {
  return layout == Layout::kRows ? "rows.v1" : "p16.v1";
}

std::optional<Layout> parse_layout(std::string_view name) {
  for (Layout layout : {Layout::kRows, Layout::kPanels16})
    if (layout_name(layout) == name) return layout;
  return std::nullopt;
}

}  // namespace stagecoach
