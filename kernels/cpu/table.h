// The end of every instruction set's translation unit: its table over the bodies above.
#pragma once

#include "kernels/cpu/activation.h"
#include "kernels/cpu/append_kv.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/norm.h"
#include "kernels/cpu/rotary.h"

namespace stagecoach::STAGECOACH_ISA {
namespace {

constexpr KernelTable make_table(const char* isa) {
  return {isa, matmul, norm, rotary, append_kv, attention, activation};
}

}  // namespace
}  // namespace stagecoach::STAGECOACH_ISA
