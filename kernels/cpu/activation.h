#pragma once

#include "kernels/cpu/vec_math.h"
#include "kernels/include/ops.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

template <typename Function>
inline void map_elements(const ActivationArgs& args, std::int64_t begin, std::int64_t end,
                         Function function) {
  for (std::int64_t i = begin; i < end; i += kLanes) {
    const std::int64_t n = end - i;
    Vec v = function(load_first(args.x + i, n));
    if (args.up != nullptr) v *= load_first(args.up + i, n);
    store_first(args.y + i, v, n);
  }
}

inline void activation(const ActivationArgs& args, std::int64_t begin, std::int64_t end) {
  switch (args.kind) {
    case Activation::kGeluTanh:
      return map_elements(args, begin, end, [](Vec x) { return gelu_tanh(x); });
    case Activation::kGeluErf:
      return map_elements(args, begin, end, [](Vec x) { return gelu_erf(x); });
    case Activation::kRelu:
      return map_elements(args, begin, end, [](Vec x) { return relu(x); });
    case Activation::kSilu:
      return map_elements(args, begin, end, [](Vec x) { return silu(x); });
  }
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
