#pragma once

#include <string>

#include "engine/workspace.h"
#include "kernels/include/dtype.h"

namespace stagecoach {

// How --activations packs what meets `weights`; `bf16_dot`: there are instructions for products of
// bf16. auto: int8 for quantised weights, which every instruction set multiplies faster so; bf16
// for bf16 where there are instructions for it. Throws usage_error for int8 without quantised
// weights.
InputPacking input_packing(const std::string& activations, DType weights, bool bf16_dot);

}  // namespace stagecoach
