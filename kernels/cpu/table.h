// The end of every instruction set's translation unit: its table over the bodies above.
#pragma once

#include "kernels/cpu/activation.h"
#include "kernels/cpu/append_kv.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/pack_input.h"
#include "kernels/cpu/product_f32.h"
#include "kernels/cpu/product_int8.h"
#include "kernels/cpu/rotary.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

template <typename BytesProduct = Int8Product<AsQ8>>
constexpr KernelTable make_table(const char* isa,
                                 decltype(KernelTable::matmul_bf16) multiply_bf16 = nullptr) {
  return {isa,           pack_input, multiply_f32, multiply_int8<BytesProduct>,
          multiply_bf16, norm,       rotary,       append_kv,
          attention,     activation};
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
