// Tensor cores and asynchronous copies.
#include "cuda_sim_tensor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "block_state.h"
#include "kernels/include/dtype.h"
#include "runtime.h"

namespace cuda_sim {
namespace {

constexpr std::uintptr_t kRowBytes = 16;  // alignment, too
constexpr int kAmpere = 80;

struct MmaOperands {
  const std::uint32_t* a;
  const std::uint32_t* b;
  float* c;
};

struct LdmatrixOperands {
  std::uint32_t* to;
  const void* row;
};

template <TensorType kType>
float half_of(std::uint32_t pair, unsigned high) {
  const auto bits = static_cast<std::uint16_t>(pair >> (16 * high));
  return kType == TensorType::kF16 ? stagecoach::f16_to_f32(bits) : stagecoach::bf16_to_f32(bits);
}

// Of a: register 2 (k / 8) + row / 8 of lane 4 (row % 8) + k % 8 / 2. Of b: register k / 8 of lane
// 4 column + k % 8 / 2. Of c: register 2 (row / 8) + column % 2 of lane 4 (row % 8) + column / 2.
// kDepth is the extent of k: with 8 there are half as many registers of a and b. In which order a
// card adds is not documented, and always the same: here the configuration says it.
template <TensorType kType, unsigned kDepth>
void multiply(void* const* lanes) {
  const auto of = [&](unsigned lane) -> const MmaOperands& {
    return *static_cast<const MmaOperands*>(lanes[lane]);
  };
  float a[16][kDepth], b[8][kDepth];
  for (unsigned k = 0; k < kDepth; ++k) {
    for (unsigned row = 0; row < 16; ++row)
      a[row][k] = half_of<kType>(of(row % 8 * 4 + k % 8 / 2).a[k / 8 * 2 + row / 8], k % 2);
    for (unsigned column = 0; column < 8; ++column)
      b[column][k] = half_of<kType>(of(column * 4 + k % 8 / 2).b[k / 8], k % 2);
  }
  const auto flipped = static_cast<unsigned>(runtime().config.tensor_sums % kDepth);
  for (unsigned row = 0; row < 16; ++row)
    for (unsigned column = 0; column < 8; ++column) {
      float& c = of(row % 8 * 4 + column / 2).c[row / 8 * 2 + column % 2];
      float sum = c;
      for (unsigned i = 0; i < kDepth; ++i) {
        const unsigned k = i ^ flipped;
        const float product = a[row][k] * b[column][k];
        sum += product;
      }
      c = sum;
    }
}

template <bool kTransposed>
void load(void* const* lanes) {
  const auto of = [&](unsigned lane) -> const LdmatrixOperands& {
    return *static_cast<const LdmatrixOperands*>(lanes[lane]);
  };
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t rows[8][8];
    for (unsigned row = 0; row < 8; ++row)
      std::memcpy(rows[row], of(matrix * 8 + row).row, kRowBytes);
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned group = lane / 4, pair = lane % 4 * 2;
      const std::uint32_t low = kTransposed ? rows[pair][group] : rows[group][pair];
      const std::uint32_t high = kTransposed ? rows[pair + 1][group] : rows[group][pair + 1];
      of(lane).to[matrix] = low | high << 16;
    }
  }
}

void check_capability(const char* what, int lowest, Place place) {
  const int capability = runtime().config.capability;
  if (capability >= lowest) return;
  fail_block(cudaErrorIllegalInstruction,
             fmt::format("{} ({}:{}) needs sm_{}, the device is sm_{}", what, place.file,
                         place.line, lowest, capability));
}

void check_row(const char* what, const void* address, Place place) {
  if (reinterpret_cast<std::uintptr_t>(address) % kRowBytes == 0) return;
  fail_block(
      cudaErrorMisalignedAddress,
      fmt::format("thread ({},{},{}): {} ({}:{}) at {}, which is no multiple of 16", threadIdx.x,
                  threadIdx.y, threadIdx.z, what, place.file, place.line, address));
}

void check_shared(const char* what, const void* address, Place place) {
  check_row(what, address, place);
  const auto* const byte = static_cast<const std::byte*>(address);
  const std::byte* const begin = block_state.shared;
  if (byte >= begin && byte + kRowBytes <= begin + block_state.shared_bytes) return;
  fail_block(cudaErrorIllegalAddress,
             fmt::format("thread ({},{},{}): {} ({}:{}) outside of the block's {} bytes of shared "
                         "memory",
                         threadIdx.x, threadIdx.y, threadIdx.z, what, place.file, place.line,
                         block_state.shared_bytes));
}

void do_copy(const AsyncCopy& copy) {
  auto* const to = static_cast<std::byte*>(copy.to);
  std::memcpy(to, copy.from, copy.bytes);
  std::fill(to + copy.bytes, to + kRowBytes, std::byte{0});
}

AsyncCopies& own_copies() {
  return block_state.copies[static_cast<std::size_t>(block_state.current)];
}

}  // namespace

void mma_m16n8k16(TensorType type, const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  float (&c)[4], Place place) {
  check_capability("mma.m16n8k16", kAmpere, place);
  MmaOperands operands{.a = a, .b = b, .c = c};
  warp_together(
      WarpKind::kMma, &operands,
      type == TensorType::kF16 ? multiply<TensorType::kF16, 16> : multiply<TensorType::kBF16, 16>,
      place);
}

void mma_m16n8k8(const std::uint32_t (&a)[2], const std::uint32_t (&b)[1], float (&c)[4],
                 Place place) {
  MmaOperands operands{.a = a, .b = b, .c = c};
  warp_together(WarpKind::kMmaK8, &operands, multiply<TensorType::kF16, 8>, place);
}

void ldmatrix_x4(bool transposed, std::uint32_t (&to)[4], const void* row, Place place) {
  check_shared("ldmatrix", row, place);
  LdmatrixOperands operands{.to = to, .row = row};
  warp_together(WarpKind::kLdmatrix, &operands, transposed ? load<true> : load<false>, place);
}

void copy_async(void* shared, const void* global, std::size_t bytes, Place place) {
  check_capability("cp.async", kAmpere, place);
  check_shared("cp.async", shared, place);
  check_row("cp.async", global, place);
  if (bytes != 0) check_access(global, bytes);
  AsyncCopies& own = own_copies();
  const AsyncCopy copy{.to = shared, .from = global, .bytes = bytes, .group = own.committed};
  if (block_state.random->chance(1, 2))
    do_copy(copy);
  else
    own.pending.push_back(copy);
}

void commit_copies() {
  ++own_copies().committed;
}

void wait_copies(std::size_t groups) {
  AsyncCopies& own = own_copies();
  std::erase_if(own.pending, [&](const AsyncCopy& copy) {
    if (copy.group + groups >= own.committed) return false;
    do_copy(copy);
    return true;
  });
}

}  // namespace cuda_sim
