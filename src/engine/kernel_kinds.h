// The spec's axes in the kernels' words.
#pragma once

#include "kernels/include/ops.h"
#include "model/model_spec.h"

namespace stagecoach {

inline NormKind norm_kind(const ModelSpec& spec) {
  return spec.norm == NormAxis::kLayerNorm ? NormKind::kLayerNorm : NormKind::kRmsNorm;
}

inline Activation activation_kind(const ModelSpec& spec) {
  switch (spec.activation) {
    case ActivationKind::kGeluTanh:
      return Activation::kGeluTanh;
    case ActivationKind::kGeluErf:
      return Activation::kGeluErf;
    case ActivationKind::kRelu:
      return Activation::kRelu;
    case ActivationKind::kSilu:
      return Activation::kSilu;
  }
  return Activation::kRelu;
}

}  // namespace stagecoach
