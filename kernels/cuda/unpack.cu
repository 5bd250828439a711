// Packed weights → column-major matrices of a plain type, as cuBLAS multiplies them: neighbouring
// threads write neighbouring outputs, and what the panels have side by side they read as such.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"

namespace stagecoach::cuda {
namespace {

constexpr int kAcross = 64;  // threads of a block along the outputs; and
constexpr int kDown = 4;     // along the columns
constexpr int kPanel = static_cast<int>(kPanelRows);

// Of a thread: its place along the outputs and the columns, in units of what a thread unpacks.
struct Place {
  std::int64_t across, down;
};
__device__ Place place() {
  const std::int64_t thread = threadIdx.x;
  return {.across = std::int64_t{blockIdx.y} * kAcross + thread % kAcross,
          .down = std::int64_t{blockIdx.x} * kDown + thread / kAcross};
}

// A thread copies 16 bytes of one column.
template <typename From, typename To>
__global__ void unpack_plain(UnpackArgs args) {
  constexpr int kOutputs = 16 / static_cast<int>(sizeof(From));
  const Place at = place();
  const std::int64_t output = at.across * kOutputs, k = at.down;
  if (output >= args.count || k >= args.in) return;
  const std::int64_t row = args.first + output;
  const std::int64_t element = (row / kPanel * args.in + k) * kPanel + row % kPanel;
  const uint4 loaded = __ldcs(reinterpret_cast<const uint4*>(
      args.weight + element * static_cast<std::int64_t>(sizeof(From))));
  To* const to = static_cast<To*>(args.to) + k * args.count + output;
  if constexpr (sizeof(From) == sizeof(To)) {
    *reinterpret_cast<uint4*>(to) = loaded;  // one type: bits move
  } else {
    const From* const values = reinterpret_cast<const From*>(&loaded);
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4)
      *reinterpret_cast<float4*>(to + i) =
          make_float4(to_float(values[i]), to_float(values[i + 1]), to_float(values[i + 2]),
                      to_float(values[i + 3]));
  }
}

// A thread unpacks one word: kColumns columns of one output.
template <bool kQ8, typename To>
__global__ void unpack_groups(UnpackArgs args) {
  constexpr int kColumns = kQ8 ? 4 : 8;
  constexpr int kWords = static_cast<int>(kGroupCols) / kColumns;  // of a row in a group
  constexpr int kScaleBytes = 2 * kPanel;
  constexpr std::int64_t kGroupBytes = kScaleBytes + kWords * kPanel * 4;
  const Place at = place();
  const std::int64_t groups = (args.in + kGroupCols - 1) / kGroupCols;
  if (at.across >= args.count || at.down >= groups * kWords) return;
  const std::int64_t row = args.first + at.across;
  const std::byte* const group =
      args.weight + (row / kPanel * groups + at.down / kWords) * kGroupBytes;
  const float scale = to_float(reinterpret_cast<const __half*>(group)[row % kPanel]);
  const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(
      group + kScaleBytes)[at.down % kWords * kPanel + row % kPanel];
  To* const to = static_cast<To*>(args.to) + at.across;
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const std::int64_t k = at.down * kColumns + j;
    if (k >= args.in) return;
    int quant = 0;
    if constexpr (kQ8)
      quant = signed_byte(word, j);
    else
      quant = static_cast<int>(word >> (8 * (j % 4) + (j >= 4 ? 4 : 0)) & 15u) - 8;
    to[k * args.count] = from_float<To>(scale * static_cast<float>(quant));
  }
}

LaunchShape over(std::int64_t across, std::int64_t down, cudaStream_t stream) {
  return {.grid = dim3(divide_up(down, kDown), divide_up(across, kAcross)),
          .threads = kAcross * kDown,
          .shared_bytes = 0,
          .stream = stream};
}

template <typename From, typename To>
void plain(const UnpackArgs& args, cudaStream_t stream) {
  constexpr std::int64_t kOutputs = 16 / static_cast<std::int64_t>(sizeof(From));
  launch("unpack", unpack_plain<From, To>, over(args.count / kOutputs, args.in, stream), args);
}

template <bool kQ8>
void groups(const UnpackArgs& args, cudaStream_t stream) {
  const std::int64_t words = (args.in + kGroupCols - 1) / kGroupCols * (kGroupCols / (kQ8 ? 4 : 8));
  const LaunchShape shape = over(args.count, words, stream);
  if (args.to_type == InputType::kF16)
    launch(kQ8 ? "unpack_q8" : "unpack_q4", unpack_groups<kQ8, __half>, shape, args);
  else
    launch(kQ8 ? "unpack_q8" : "unpack_q4", unpack_groups<kQ8, float>, shape, args);
}

}  // namespace

void unpack_weight(const UnpackArgs& args, cudaStream_t stream) {
  const bool to_float32 = args.to_type == InputType::kF32;
  switch (args.weight_type) {
    case DType::kF32:
      return plain<float, float>(args, stream);
    case DType::kF16:
      return to_float32 ? plain<__half, float>(args, stream) : plain<__half, __half>(args, stream);
    case DType::kBF16:
      return to_float32 ? plain<__nv_bfloat16, float>(args, stream)
                        : plain<__nv_bfloat16, __nv_bfloat16>(args, stream);
    case DType::kQ8:
      return groups<true>(args, stream);
    case DType::kQ4:
      return groups<false>(args, stream);
  }
}

}  // namespace stagecoach::cuda
