#include "app/input_packing.h"

#include "base/dtype_names.h"
#include "base/error.h"

namespace stagecoach {

InputPacking input_packing(const std::string& activations, DType weights, HalfInputs halves) {
  const bool quantized = is_quantized(weights);
  if (activations == "int8" && !quantized)
    throw usage_error(fmt::format("--activations int8 needs q8 or q4 weights; this store has {}",
                                  dtype_name(weights)),
                      "--activations auto, or a store with --weights q8 or q4");
  if (activations == "int8" || (activations == "auto" && quantized)) return InputType::kInt8;
  if (activations == "bf16") return halves.bf16 ? InputType::kBF16 : InputType::kF32;
  if (activations == "auto" && weights == DType::kBF16 && halves.bf16) return InputType::kBF16;
  if (activations == "auto" && weights == DType::kF16 && halves.f16) return InputType::kF16;
  return std::nullopt;
}

}  // namespace stagecoach
