#include "app/input_packing.h"

#include "base/dtype_names.h"
#include "base/error.h"

namespace stagecoach {

InputPacking input_packing(const std::string& activations, DType weights, bool bf16_dot) {
  const bool quantized = is_quantized(weights);
  if (activations == "int8" && !quantized)
    throw usage_error(fmt::format("--activations int8 needs q8 or q4 weights; this store has {}",
                                  dtype_name(weights)),
                      "--activations auto, or a store with --weights q8 or q4");
  if (activations == "int8" || (activations == "auto" && quantized)) return InputType::kInt8;
  const bool dot = bf16_dot && (quantized || weights == DType::kBF16);
  if (activations == "bf16") return dot ? InputType::kBF16 : InputType::kF32;
  if (activations == "auto" && dot) return InputType::kBF16;
  return std::nullopt;
}

}  // namespace stagecoach
