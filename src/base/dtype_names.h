// Names of dtypes and layouts as they stand in manifests and on the command line.
#pragma once

#include <optional>
#include <string_view>

#include "kernels/include/dtype.h"
#include "kernels/include/pack.h"

namespace stagecoach {

std::string_view dtype_name(DType type);  // "f32", "f16", "bf16", "q8", "q4"
std::optional<DType> parse_dtype(std::string_view name);

std::string_view layout_name(Layout layout);  // "rows.v1", "p16.v1", "q8.g32.v1" …
std::optional<Layout> parse_layout(std::string_view name);

}  // namespace stagecoach
