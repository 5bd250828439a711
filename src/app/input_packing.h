#pragma once

#include <string>

#include "engine/workspace.h"
#include "kernels/include/dtype.h"

namespace stagecoach {

// What a device multiplies weights of the store's type with, besides float32 and, of quantised
// ones, int8.
struct HalfInputs {
  bool bf16 = false, f16 = false;
};

// How --activations packs what meets `weights`. auto: int8 for quantised weights, which every
// instruction set multiplies faster so; bf16 for bf16 and f16 for f16 where there are instructions
// for it. Throws usage_error for int8 without quantised weights.
InputPacking input_packing(const std::string& activations, DType weights, HalfInputs halves);

}  // namespace stagecoach
