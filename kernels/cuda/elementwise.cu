// Ops that touch each element once: packing, rotary embedding, activation, gathering, bias.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packing.h"
#include "kernels/cuda/rotation.h"

namespace stagecoach::cuda {
namespace {

constexpr unsigned kThreads = 256;

// ---- Packing of inputs

template <typename Packing>
__global__ void pack_kernel(PackInputArgs args, std::int64_t stride) {
  const std::int64_t k = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (k >= packing_cols(args.cols)) return;  // the whole warp
  Packing::put(args.packed + row * stride, args.cols, k,
               k < args.cols ? args.x[row * args.x_stride + k] : 0.0f);
}

__global__ void unpack_groups(UnpackInputArgs args) {
  const std::int64_t k = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (k >= args.cols) return;
  const InputGroup& group =
      reinterpret_cast<const InputGroup*>(args.x.data + row * args.x.stride)[k / kGroupCols];
  static_cast<__half*>(args.to)[row * args.cols + k] =
      from_float<__half>(group.scale * static_cast<float>(group.quant[k % kGroupCols]));
}

// ---- The rest

template <typename Word>
__global__ void fetch_kernel(Word* to, const Word* from, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from[i];
}

__global__ void bias_kernel(MatmulArgs args) {
  const std::int64_t n = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (n >= args.out) return;
  float& y = args.y[blockIdx.x * args.y_stride + n];
  y = args.accumulate ? y + args.bias[n] : args.bias[n];
}

// Where element (row, col) of a table lies, and what it is.
__device__ float table_element(const GatherArgs& args, std::int64_t row, std::int64_t col) {
  std::int64_t at = row * args.cols + col;
  if (args.layout == Layout::kPanels16)
    at = (row / kPanelRows * args.cols + col) * kPanelRows + row % kPanelRows;
  switch (args.type) {
    case DType::kF32:
      return reinterpret_cast<const float*>(args.table)[at];
    case DType::kF16:
      return to_float(reinterpret_cast<const __half*>(args.table)[at]);
    case DType::kBF16:
      return to_float(reinterpret_cast<const __nv_bfloat16*>(args.table)[at]);
    case DType::kQ8:
    case DType::kQ4:
      break;
  }
  // Groups of 32 columns of a panel.
  const bool q8 = args.type == DType::kQ8;
  constexpr std::int64_t kScales = 2 * kPanelRows;
  const std::int64_t group_bytes = kScales + kPanelRows * kGroupCols / (q8 ? 1 : 2);
  const std::int64_t groups = (args.cols + kGroupCols - 1) / kGroupCols;
  const std::byte* const group =
      args.table + (row / kPanelRows * groups + col / kGroupCols) * group_bytes;
  const float scale = to_float(reinterpret_cast<const __half*>(group)[row % kPanelRows]);
  const auto* const words = reinterpret_cast<const std::uint32_t*>(group + kScales);
  const int within = static_cast<int>(col % kGroupCols);
  const std::int64_t panel_row = row % kPanelRows;
  if (q8)
    return scale *
           static_cast<float>(signed_byte(words[within / 4 * kPanelRows + panel_row], within % 4));
  const std::uint32_t word = words[within / 8 * kPanelRows + panel_row];
  const int shift = 8 * (within % 4) + (within % 8 >= 4 ? 4 : 0);
  return scale * static_cast<float>(static_cast<int>(word >> shift & 15u) - 8);
}

__global__ void gather_kernel(GatherArgs args) {
  const std::int64_t col = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (col >= args.cols) return;
  const float value = table_element(args, args.ids[blockIdx.x], col);
  float& out = args.out[blockIdx.x * args.cols + col];
  out = args.accumulate ? out + value : value;
}

__global__ void rotary_kernel(RotaryArgs args) {
  const std::int64_t index = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (index < args.heads * (args.rotary_dim / 2)) rotate_pair(args, blockIdx.x, index);
}

__device__ float activate(Activation kind, float x) {
  switch (kind) {
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case Activation::kGeluErf:
      return 0.5f * x * erfcf(x * -0.7071067811865476f);
    case Activation::kRelu:
      return x > 0.0f ? x : (x == x ? 0.0f : x);
    case Activation::kSilu:
      return x / (1.0f + expf(-x));
  }
  return x;
}

__device__ float activated(const ActivationArgs& args, std::int64_t i) {
  const float y = activate(args.kind, args.x[i]);
  return args.up != nullptr ? y * args.up[i] : y;
}

__global__ void activation_kernel(ActivationArgs args) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < args.count) args.y[i] = activated(args, i);
}

template <typename Packing>
__global__ void activation_pack_kernel(ActivationArgs args, std::byte* packed, std::int64_t cols,
                                       std::int64_t stride) {
  const std::int64_t k = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (k >= packing_cols(cols)) return;  // the whole warp
  Packing::put(packed + row * stride, cols, k, k < cols ? activated(args, row * cols + k) : 0.0f);
}

// Rows along x, which takes more of them.
LaunchShape over(std::int64_t cols, std::int64_t rows, cudaStream_t stream) {
  return {.grid = dim3(static_cast<unsigned>(rows), divide_up(cols, kThreads)),
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream};
}

// A word for each thread: over the bus it is many reads under way that count.
template <typename Word>
void fetch_words(std::byte* to, const std::byte* from, std::int64_t count, cudaStream_t stream) {
  if (count == 0) return;
  launch("fetch", fetch_kernel<Word>,
         {.grid = dim3(divide_up(count, kThreads)),
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream},
         reinterpret_cast<Word*>(to), reinterpret_cast<const Word*>(from), count);
}

bool are_words(const std::byte* to, const std::byte* from) {
  return (reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) %
             sizeof(uint4) ==
         0;
}

}  // namespace

void fetch(std::byte* to, const std::byte* from, std::int64_t bytes, cudaStream_t stream) {
  constexpr std::int64_t kWord = sizeof(uint4);
  const std::int64_t words = are_words(to, from) ? bytes / kWord : 0;
  fetch_words<uint4>(to, from, words, stream);
  const std::int64_t done = words * kWord;
  fetch_words<std::byte>(to + done, from + done, bytes - done, stream);
}

void pack_input(const PackInputArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  with_packing(args.type, [&]<typename Packing>(Packing) {
    launch("pack_input", pack_kernel<Packing>, over(packing_cols(args.cols), args.rows, stream),
           args, packed_row_stride(args.type, args.cols));
  });
}

void unpack_input(const UnpackInputArgs& args, cudaStream_t stream) {
  launch("unpack_groups", unpack_groups, over(args.cols, args.rows, stream), args);
}

void add_bias(const MatmulArgs& args, cudaStream_t stream) {
  if (args.bias == nullptr) return;
  launch("bias", bias_kernel, over(args.out, args.rows, stream), args);
}

void gather_rows(const GatherArgs& args, cudaStream_t stream) {
  if (args.count == 0) return;
  launch("gather_rows", gather_kernel, over(args.cols, args.count, stream), args);
}

void rotary(const RotaryArgs& args, cudaStream_t stream) {
  if (args.rows == 0 || args.rotary_dim < 2) return;
  launch("rotary", rotary_kernel, over(args.heads * (args.rotary_dim / 2), args.rows, stream),
         args);
}

void activation(const ActivationArgs& args, cudaStream_t stream) {
  if (args.count == 0) return;
  launch("activation", activation_kernel,
         {.grid = dim3(divide_up(args.count, kThreads)),
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream},
         args);
}

void activation_and_pack(const ActivationArgs& args, const PackInputArgs& pack,
                         cudaStream_t stream) {
  if (pack.rows == 0) return;
  with_packing(pack.type, [&]<typename Packing>(Packing) {
    launch("activation_and_pack", activation_pack_kernel<Packing>,
           over(packing_cols(pack.cols), pack.rows, stream), args, pack.packed, pack.cols,
           packed_row_stride(pack.type, pack.cols));
  });
}

}  // namespace stagecoach::cuda
