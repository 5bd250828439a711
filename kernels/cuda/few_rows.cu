// Products of few rows (decode): as fast as the weights can be read, in whole 16-byte words that
// neighbouring lanes read side by side.
//
// A block makes the 16 outputs of one panel for up to kFewRows rows, a launch those of some
// products of the same rows. Where there are more rows, the blocks of a panel are neighbours, which
// run together: the first to read a weight brings it into L2 for the others. A block's warps take
// turns along k, its lanes share a step:
//
//   f32     8 columns a step: lane l has outputs 4 (l % 4) … + 3 of column l / 4
//   16 bit  16 columns: lane l has outputs 8 (l % 2) … + 7 of column l / 2
//   q8      one group of 32 columns: lane l has word l / 4 (4 columns) of rows 4 (l % 4) … + 3
//   q4      two groups: lanes 0 to 15 the first, word (l % 16) / 4 (8 columns) of such rows
//
// Each lane keeps one float32 sum for each of its outputs; then lanes, then warps add theirs up in
// a fixed order. So a row's bits do not depend on how many rows there are.
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda/elements.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/warp.h"

namespace stagecoach::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kPanel = static_cast<int>(kPanelRows);
constexpr int kGroup = static_cast<int>(kGroupCols);
constexpr int kScaleBytes = 2 * kPanel;

// ---- Inputs: float32, or packed as 16 bit, as numbers; or groups of quants.

// A kernel for more rows than there are reads the last one again.
struct RowPointers {
  const std::byte* data;
  std::int64_t stride;
  int rows;

  __device__ const std::byte* operator[](int row) const {
    return data + (row < rows ? row : rows - 1) * stride;
  }
  __device__ RowPointers from(int row) const {
    return {.data = data + row * stride, .stride = stride, .rows = rows - row};
  }
};

template <typename T>
struct PlainInput {
  static constexpr bool kPadded = true;  // there are zeros behind its columns
  RowPointers data;
  std::int64_t cols;

  __device__ float at(int row, std::int64_t k) const {
    return to_float(reinterpret_cast<const T*>(data[row])[k]);
  }
  // Beyond the last column stands anything, a NaN even.
  __device__ float padded(int row, std::int64_t k) const { return k < cols ? at(row, k) : 0.0f; }
};

struct QuantInput {
  static constexpr bool kPadded = false;
  RowPointers data;

  __device__ const InputGroup& group(int row, std::int64_t g) const {
    return reinterpret_cast<const InputGroup*>(data[row])[g];
  }
};

// Columns 4 word … + 3 of a group.
__device__ int quant_word(const InputGroup& group, int word) {
  return reinterpret_cast<const int*>(group.quant)[word];
}

// ---- Weights: what a lane adds to its sums in one step.

template <typename T>
struct PlainWeight {
  static constexpr int kOutputs = 16 / static_cast<int>(sizeof(T));  // of a lane
  static constexpr int kLanesPerColumn = kPanel / kOutputs;
  static constexpr int kColumns = kWarp / kLanesPerColumn;  // of a step

  static __device__ std::int64_t steps(std::int64_t in) { return (in + kColumns - 1) / kColumns; }
  static __device__ std::int64_t panel_bytes(std::int64_t in) {
    return in * kPanel * static_cast<std::int64_t>(sizeof(T));
  }

  template <int kRows, typename Input>
  static __device__ void add(const std::byte* panel, std::int64_t in, std::int64_t step, int lane,
                             const Input& x, float (&sums)[kRows][kOutputs]) {
    const std::int64_t k = step * kColumns + lane / kLanesPerColumn;
    if (k >= in) return;
    const uint4 loaded = __ldcs(reinterpret_cast<const uint4*>(panel) + step * kWarp + lane);
    const T* const weights = reinterpret_cast<const T*>(&loaded);
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const float value = x.at(row, k);
#pragma unroll
      for (int i = 0; i < kOutputs; ++i)
        sums[row][i] = fmaf(to_float(weights[i]), value, sums[row][i]);
    }
  }
};

// The words that a lane reads of a group: word `word` of rows 4 quarter … + 3.
struct LaneInGroup {
  int word, quarter;
};

__device__ float4 scales_of(const std::byte* group, int quarter) {
  const uint2 loaded = __ldcs(reinterpret_cast<const uint2*>(group) + quarter);
  const __half* const scales = reinterpret_cast<const __half*>(&loaded);
  return make_float4(to_float(scales[0]), to_float(scales[1]), to_float(scales[2]),
                     to_float(scales[3]));
}

struct Q8Weight {
  static constexpr int kOutputs = 4;
  static constexpr std::int64_t kGroupBytes = kScaleBytes + kPanel * kGroup;

  static __device__ std::int64_t steps(std::int64_t in) { return (in + kGroup - 1) / kGroup; }
  static __device__ std::int64_t panel_bytes(std::int64_t in) { return steps(in) * kGroupBytes; }

  template <int kRows, typename Input>
  static __device__ void add(const std::byte* panel, std::int64_t, std::int64_t step, int lane,
                             const Input& x, float (&sums)[kRows][kOutputs]) {
    const std::byte* const group = panel + step * kGroupBytes;
    const LaneInGroup at{.word = lane / 4, .quarter = lane % 4};
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(group + kScaleBytes) + lane);
    const float4 scales = scales_of(group, at.quarter);
    add_words(words, scales, step, at, x, sums);
  }

  template <int kRows, typename T>
  static __device__ void add_words(const uint4& words, const float4& scales, std::int64_t g,
                                   LaneInGroup at, const PlainInput<T>& x,
                                   float (&sums)[kRows][kOutputs]) {
    const std::uint32_t* const word = &words.x;
    const float* const scale = &scales.x;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float values[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) values[j] = x.padded(row, g * kGroup + 4 * at.word + j);
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum = fmaf(static_cast<float>(signed_byte(word[i], j)), values[j], sum);
        sums[row][i] = fmaf(sum, scale[i], sums[row][i]);
      }
    }
  }

  template <int kRows>
  static __device__ void add_words(const uint4& words, const float4& scales, std::int64_t g,
                                   LaneInGroup at, const QuantInput& x,
                                   float (&sums)[kRows][kOutputs]) {
    const std::uint32_t* const word = &words.x;
    const float* const scale = &scales.x;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const InputGroup& group = x.group(row, g);
      const int quants = quant_word(group, at.word);
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        const int dot = __dp4a(static_cast<int>(word[i]), quants, 0);
        sums[row][i] = fmaf(static_cast<float>(dot), scale[i] * group.scale, sums[row][i]);
      }
    }
  }
};

struct Q4Weight {
  static constexpr int kOutputs = 4;
  static constexpr std::int64_t kGroupBytes = kScaleBytes + kPanel * kGroup / 2;
  static constexpr int kGroupsPerStep = 2;

  static __device__ std::int64_t groups(std::int64_t in) { return (in + kGroup - 1) / kGroup; }
  static __device__ std::int64_t steps(std::int64_t in) {
    return (groups(in) + kGroupsPerStep - 1) / kGroupsPerStep;
  }
  static __device__ std::int64_t panel_bytes(std::int64_t in) { return groups(in) * kGroupBytes; }

  template <int kRows, typename Input>
  static __device__ void add(const std::byte* panel, std::int64_t in, std::int64_t step, int lane,
                             const Input& x, float (&sums)[kRows][kOutputs]) {
    // Beyond the last group its weights count again, as 0: leaving here would keep the compiler
    // from loading ahead. So do its inputs, unless one may be infinite, of which 0 would make NaN.
    const std::int64_t wanted = step * kGroupsPerStep + lane / 16;
    const bool inside = wanted < groups(in);
    const std::int64_t g = inside ? wanted : groups(in) - 1;
    const std::byte* const group = panel + g * kGroupBytes;
    const LaneInGroup at{.word = lane % 16 / 4, .quarter = lane % 4};
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(group + kScaleBytes) + lane % 16);
    const float4 scales = inside ? scales_of(group, at.quarter) : float4{};
    add_words(words, scales, Input::kPadded ? wanted : g, at, x, sums);
  }

  template <int kRows, typename T>
  static __device__ void add_words(const uint4& words, const float4& scales, std::int64_t g,
                                   LaneInGroup at, const PlainInput<T>& x,
                                   float (&sums)[kRows][kOutputs]) {
    const std::uint32_t* const word = &words.x;
    const float* const scale = &scales.x;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float values[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) values[j] = x.padded(row, g * kGroup + 8 * at.word + j);
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int low = static_cast<int>(word[i] >> (8 * j) & 15u) - 8;
          const int high = static_cast<int>(word[i] >> (8 * j + 4) & 15u) - 8;
          sum = fmaf(static_cast<float>(low), values[j], sum);
          sum = fmaf(static_cast<float>(high), values[4 + j], sum);
        }
        sums[row][i] = fmaf(sum, scale[i], sums[row][i]);
      }
    }
  }

  // Quants are stored 8 above their value, for which the group's minus_8_sum makes up: once, in the
  // lanes that have its first word.
  template <int kRows>
  static __device__ void add_words(const uint4& words, const float4& scales, std::int64_t g,
                                   LaneInGroup at, const QuantInput& x,
                                   float (&sums)[kRows][kOutputs]) {
    const std::uint32_t* const word = &words.x;
    const float* const scale = &scales.x;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const InputGroup& group = x.group(row, g);
      const int low = quant_word(group, 2 * at.word), high = quant_word(group, 2 * at.word + 1);
      const int correction = at.word == 0 ? group.minus_8_sum : 0;
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        int dot = __dp4a(static_cast<int>(word[i] & 0x0f0f0f0fu), low, correction);
        dot = __dp4a(static_cast<int>(word[i] >> 4 & 0x0f0f0f0fu), high, dot);
        sums[row][i] = fmaf(static_cast<float>(dot), scale[i] * group.scale, sums[row][i]);
      }
    }
  }
};

// ---- The products

// Of one product: what it does not share with the others of the launch.
struct Output {
  unsigned first_panel;  // of all panels of the launch
  const std::byte* weight;
  const float* bias;
  float* y;
  std::int64_t y_stride, out;
};

struct FewRowsArgs {
  std::int64_t rows, in;
  bool accumulate;
  int count;
  Output outputs[kMostTogether];
};

// Which of the outputs has a panel.
__device__ int output_of(const FewRowsArgs& args, unsigned panel) {
  int found = 0;
#pragma unroll
  for (int i = 1; i < static_cast<int>(kMostTogether); ++i)
    if (i < args.count && panel >= args.outputs[i].first_panel) found = i;
  return found;
}

template <int kRows>
struct BlockSums {
  float of_warp[kWarps][kRows][kPanel];
};

// Adds up what the lanes that share outputs have: those whose numbers differ by multiples of
// kPanel / kOutputs.
template <int kRows, int kOutputs>
__device__ void store_lane_sums(float (&sums)[kRows][kOutputs], int lane,
                                float (&shared)[kRows][kPanel]) {
  constexpr int kApart = kPanel / kOutputs;
#pragma unroll
  for (int row = 0; row < kRows; ++row)
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      float sum = sums[row][i];
#pragma unroll
      for (int step = kWarp / 2; step >= kApart; step /= 2)
        sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (lane < kApart) shared[row][lane * kOutputs + i] = sum;
    }
}

template <typename Weight, int kRows, typename Input>
// Three blocks a multiprocessor, or the compiler would save registers where loads ought to be under
// way.
__global__ void __launch_bounds__(kWarps* kWarp, kRows == 1 ? 3 : 1)
    few_rows_kernel(const __grid_constant__ FewRowsArgs args, Input x) {
  auto* const shared = shared_memory<BlockSums<kRows>>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const unsigned blocks = kRows == kFewRows ? divide_up(args.rows, kRows) : 1;  // of a panel
  const unsigned panel_of_all = blockIdx.x / blocks;
  // Looked up again after the sums, which want all registers.
  const int which = output_of(args, panel_of_all);
  const unsigned panel_index = panel_of_all - args.outputs[which].first_panel;
  const int first = static_cast<int>(blockIdx.x % blocks) * kRows;
  x.data = x.data.from(first);
  const std::byte* const panel =
      args.outputs[which].weight + panel_index * Weight::panel_bytes(args.in);
  float sums[kRows][Weight::kOutputs] = {};
  const std::int64_t steps = Weight::steps(args.in);
#pragma unroll(kRows == 1 ? 4 : 2)
  for (std::int64_t step = warp; step < steps; step += kWarps)
    Weight::add(panel, args.in, step, lane, x, sums);
  store_lane_sums(sums, lane, shared->of_warp[warp]);
  __syncthreads();
  const Output& to = args.outputs[which];
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPanel; i += kWarps * kWarp) {
    const int row = i / kPanel;
    const std::int64_t n = std::int64_t{panel_index} * kPanel + i % kPanel;
    if (n >= to.out || first + row >= args.rows) continue;
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += shared->of_warp[w][row][i % kPanel];
    if (to.bias != nullptr) sum += to.bias[n];
    float& y = to.y[(first + row) * to.y_stride + n];
    y = args.accumulate ? y + sum : sum;
  }
}

// Their x, rows, in, weight_type and accumulate are the first's.
using MatmulSpan = std::span<const MatmulArgs>;

template <typename Weight, typename Input>
void launch_rows(MatmulSpan products, const Input& x, cudaStream_t stream) {
  const MatmulArgs& shared = products.front();
  FewRowsArgs args{.rows = shared.rows,
                   .in = shared.in,
                   .accumulate = shared.accumulate,
                   .count = static_cast<int>(products.size()),
                   .outputs = {}};
  unsigned panels = 0;
  for (std::size_t i = 0; i < products.size(); ++i) {
    const MatmulArgs& product = products[i];
    args.outputs[i] = {.first_panel = panels,
                       .weight = product.weight,
                       .bias = product.bias,
                       .y = product.y,
                       .y_stride = product.y_stride,
                       .out = product.out};
    panels += divide_up(product.out, kPanel);
  }
  LaunchShape shape{.grid = dim3(panels * divide_up(shared.rows, kFewRows)),
                    .threads = kWarps * kWarp,
                    .shared_bytes = 0,
                    .stream = stream};
  const auto run = [&]<int kRows>(auto kernel, const char* name, BlockSums<kRows>*) {
    shape.shared_bytes = sizeof(BlockSums<kRows>);
    launch(name, kernel, shape, args, x);
  };
  if (shared.rows == 1)
    run(few_rows_kernel<Weight, 1, Input>, "gemv", static_cast<BlockSums<1>*>(nullptr));
  else if (shared.rows == 2)
    run(few_rows_kernel<Weight, 2, Input>, "gemv_2", static_cast<BlockSums<2>*>(nullptr));
  else if (shared.rows <= 4)
    run(few_rows_kernel<Weight, 4, Input>, "gemv_4", static_cast<BlockSums<4>*>(nullptr));
  else
    run(few_rows_kernel<Weight, kFewRows, Input>, "gemv_8",
        static_cast<BlockSums<kFewRows>*>(nullptr));
}

RowPointers row_pointers(const MatmulArgs& args) {
  return {.data = args.x.data, .stride = args.x.stride, .rows = static_cast<int>(args.rows)};
}

template <typename T>
PlainInput<T> plain_input(const MatmulArgs& args) {
  return {.data = row_pointers(args), .cols = args.in};
}

// Quantised weights are multiplied with every input.
template <typename Weight>
void launch_quantized(MatmulSpan products, cudaStream_t stream) {
  const MatmulArgs& shared = products.front();
  switch (shared.x.type) {
    case InputType::kF32:
      return launch_rows<Weight>(products, plain_input<float>(shared), stream);
    case InputType::kBF16:
      return launch_rows<Weight>(products, plain_input<__nv_bfloat16>(shared), stream);
    case InputType::kF16:
      return launch_rows<Weight>(products, plain_input<__half>(shared), stream);
    case InputType::kInt8:
      return launch_rows<Weight>(products, QuantInput{row_pointers(shared)}, stream);
  }
}

// Others with float32, or with their own type.
template <typename T>
void launch_plain(MatmulSpan products, cudaStream_t stream) {
  const MatmulArgs& shared = products.front();
  if (shared.x.type == InputType::kF32)
    launch_rows<PlainWeight<T>>(products, plain_input<float>(shared), stream);
  else
    launch_rows<PlainWeight<T>>(products, plain_input<T>(shared), stream);
}

}  // namespace

void matmul_few_rows(std::span<const MatmulArgs> products, cudaStream_t stream) {
  switch (products.front().weight_type) {
    case DType::kF32:
      return launch_plain<float>(products, stream);
    case DType::kF16:
      return launch_plain<__half>(products, stream);
    case DType::kBF16:
      return launch_plain<__nv_bfloat16>(products, stream);
    case DType::kQ8:
      return launch_quantized<Q8Weight>(products, stream);
    case DType::kQ4:
      return launch_quantized<Q4Weight>(products, stream);
  }
}

}  // namespace stagecoach::cuda
