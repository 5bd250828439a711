// Ops that touch each element once: packing, rotary embedding, activation, gathering, bias.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace stagecoach::cuda {
namespace {

constexpr unsigned kThreads = 256;

// ---- Packing of inputs

template <typename T>
__global__ void pack_plain(PackInputArgs args, std::int64_t stride, std::int64_t padded) {
  const std::int64_t k = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (k >= padded) return;
  T* const packed = reinterpret_cast<T*>(args.packed + row * stride);
  packed[k] = from_float<T>(k < args.cols ? args.x[row * args.x_stride + k] : 0.0f);
}

// float32 that has been through bfloat16.
__global__ void pack_rounded(PackInputArgs args, std::int64_t stride) {
  const std::int64_t k = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (k >= args.cols) return;
  reinterpret_cast<float*>(args.packed + row * stride)[k] =
      to_float(from_float<__nv_bfloat16>(args.x[row * args.x_stride + k]));
}

// A warp makes a group of 32 columns, a lane each.
__global__ void pack_groups(PackInputArgs args, std::int64_t stride, std::int64_t groups) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t group = std::int64_t{blockIdx.y} * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  const std::int64_t row = blockIdx.x;
  if (group >= groups) return;  // the whole warp
  const std::int64_t k = group * kGroupCols + lane;
  const float x = k < args.cols ? args.x[row * args.x_stride + k] : 0.0f;
  const bool finite = __all_sync(kAllLanes, isfinite(x));
  const float magnitude = warp_max(fabsf(x));
  float scale = 0.0f;
  int quant = 0;
  if (!finite) {
    scale = __int_as_float(0x7fc00000);
  } else if (magnitude >= kSmallestInputGroup) {
    scale = magnitude / 127.0f;
    quant = static_cast<int>(rintf(x * (127.0f / magnitude)));
  }
  int sum = quant;
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  InputGroup& packed = reinterpret_cast<InputGroup*>(args.packed + row * stride)[group];
  packed.quant[lane] = static_cast<std::int8_t>(quant);
  if (lane == 0) {
    packed.scale = scale;
    packed.minus_8_sum = -8 * sum;
  }
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

__global__ void fetch_kernel(uint4* device, const uint4* pinned, std::int64_t count) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) device[i] = pinned[i];
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
  const std::int64_t half = args.rotary_dim / 2;
  const std::int64_t index = std::int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  const std::int64_t row = blockIdx.x;
  if (index >= args.heads * half) return;
  const std::int64_t head = index / half, i = index % half;
  const float c = args.cos[row * half + i], s = args.sin[row * half + i];
  float* const x = args.x + row * args.x_stride + head * args.head_dim + i;
  const float a = x[0], b = x[half];
  x[0] = a * c - b * s;
  x[half] = b * c + a * s;
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

__global__ void activation_kernel(ActivationArgs args) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= args.count) return;
  const float y = activate(args.kind, args.x[i]);
  args.y[i] = args.up != nullptr ? y * args.up[i] : y;
}

// Rows along x, which takes more of them.
LaunchShape over(std::int64_t cols, std::int64_t rows, cudaStream_t stream) {
  return {.grid = dim3(static_cast<unsigned>(rows), divide_up(cols, kThreads)),
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream};
}

}  // namespace

void fetch_table(void* device, const void* pinned, std::int64_t bytes, cudaStream_t stream) {
  const std::int64_t count = bytes / static_cast<std::int64_t>(sizeof(uint4));
  launch("fetch_table", fetch_kernel,
         {.grid = dim3(divide_up(count, kThreads)),
          .threads = kThreads,
          .shared_bytes = 0,
          .stream = stream},
         static_cast<uint4*>(device), static_cast<const uint4*>(pinned), count);
}

void pack_input(const PackInputArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return;
  const std::int64_t stride = packed_row_stride(args.type, args.cols);
  switch (args.type) {
    case InputType::kF32:
      launch("pack_rounded", pack_rounded, over(args.cols, args.rows, stream), args, stride);
      return;
    case InputType::kF16:
      launch("pack_f16", pack_plain<__half>, over(args.cols, args.rows, stream), args, stride,
             args.cols + args.cols % 2);
      return;
    case InputType::kBF16:
      launch("pack_bf16", pack_plain<__nv_bfloat16>, over(args.cols, args.rows, stream), args,
             stride, args.cols + args.cols % 2);
      return;
    case InputType::kInt8: {
      const std::int64_t groups = (args.cols + kGroupCols - 1) / kGroupCols;
      launch("pack_groups", pack_groups, over(groups * kWarp, args.rows, stream), args, stride,
             groups);
      return;
    }
  }
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

}  // namespace stagecoach::cuda
