// Contract of the CUDA kernels: the ops of kernels/include/ops.h on device memory, each queued on a
// stream. Pointers are device memory, those inside of KvSpans too; nothing is allocated, nothing
// waits. Launch errors are left to cudaGetLastError().
//
// Results do not depend on the number of rows of a product of few rows, nor on batch-mates or
// splits of attention: sums have a fixed order. They do differ from the CPU's, within rounding, and
// the products of many rows are cuBLAS's business (products.h in src/backend/cuda).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/include/decode_splits.h"
#include "kernels/include/ops.h"

namespace stagecoach::cuda {

// Spans in device memory, and what launching needs to know of them.
struct DeviceSpans {
  const KvSpan* spans = nullptr;
  std::int64_t count = 0;
  std::int64_t rows = 0;          // of all spans
  std::int64_t largest_rows = 0;  // of a span
  std::int64_t splits = 0;        // decode_splits() of the longest span of one row; 0: none
};

// Reads `bytes` of memory, a multiple of 16, and does nothing with them: for measuring. `sums` has
// room for blocks · kReadThreads numbers.
inline constexpr unsigned kReadThreads = 256;
void read_memory(const std::byte* data, std::int64_t bytes, unsigned blocks, std::uint32_t* sums,
                 cudaStream_t stream);

// From page-locked host memory, which the kernel reads over the bus, or from the device's own: a
// copy would queue behind those of weights, which the card's copy engine does one after the other.
// Fast where both addresses are multiples of 16.
void fetch(std::byte* to, const std::byte* from, std::int64_t bytes, cudaStream_t stream);

// x (rows, cols) → packed rows, as PackInputArgs says; kF16 saturates.
void pack_input(const PackInputArgs& args, cudaStream_t stream);

// Products of few rows, up to some tens: computes on each weight once for kFewRows rows, and reads
// it from memory once for all. Up to kMostTogether products are one launch: of the same rows x, by
// weights of one type, all of which accumulate or none; none reads what another writes.
inline constexpr int kFewRows = 8;
inline constexpr std::size_t kMostTogether = 3;
void matmul_few_rows(std::span<const MatmulArgs> products, cudaStream_t stream);

// Outputs [first, first + count) of a packed weight (out, in) → column-major (count, in), that is
// element (output, k) at k · count + output, as a library's matrix product reads it. `first` and
// `count` are multiples of kPanelRows; outputs beyond the last are zero, or what the layout pads
// with. To: float (any type), __half (f16, q8, q4), __nv_bfloat16 (bf16).
struct UnpackArgs {
  const std::byte* weight;
  DType weight_type;
  std::int64_t in;
  std::int64_t first, count;
  void* to;
  InputType to_type;  // kF32, kF16 or kBF16
};
void unpack_weight(const UnpackArgs& args, cudaStream_t stream);

// Packed rows → (rows, cols) of a plain type, rows packed tightly: kInt8 → __half, kF32 → float.
struct UnpackInputArgs {
  InputRows x;
  std::int64_t rows, cols;
  void* to;
};
void unpack_input(const UnpackInputArgs& args, cudaStream_t stream);

// y = bias, y += bias or nothing, before a product is added to it.
void add_bias(const MatmulArgs& args, cudaStream_t stream);

// out (count, cols) = rows ids[i] of a table, [+ what was there].
struct GatherArgs {
  const std::byte* table;
  DType type;
  Layout layout;
  std::int64_t cols;
  const std::int32_t* ids;
  std::int64_t count;
  float* out;
  bool accumulate;
};
void gather_rows(const GatherArgs& args, cudaStream_t stream);

void norm(const NormArgs& args, cudaStream_t stream);
void rotary(const RotaryArgs& args, cudaStream_t stream);
void append_kv(const AppendKvArgs& args, const DeviceSpans& spans, cudaStream_t stream);
void activation(const ActivationArgs& args, cudaStream_t stream);

// Two ops, or three, in one launch. norm.y may be null, and activation.y is not written: what is
// packed is what they would hold; pack.x is not read, pack.cols are norm.cols.
void norm_and_pack(const NormArgs& norm, const PackInputArgs& pack, cudaStream_t stream);
void activation_and_pack(const ActivationArgs& activation, const PackInputArgs& pack,
                         cudaStream_t stream);
// The query's rows in place; the key's, which are append.k, on their way to the pages alone.
void rotate_and_append(const RotaryArgs& query, const RotaryArgs& key, const AppendKvArgs& append,
                       const DeviceSpans& spans, cudaStream_t stream);

// Spans of several rows: tiles of queries against a page of keys at a time, no score matrix. In
// float32 if keys and values are; else on tensor cores: queries, keys, values and the weights of
// softmax as halves (of ±65,504 at most), with scores and sums in float32.
void attention_prefill(const AttentionArgs& args, const DeviceSpans& spans, cudaStream_t stream);
// Its part for f16 and q8.
void attention_prefill_tensor(const AttentionArgs& args, const DeviceSpans& spans,
                              cudaStream_t stream);
// Spans of one row: their keys are split over blocks, always at the same positions; what the splits
// found is put together from `scratch`, decode_scratch_floats() long.
std::int64_t decode_scratch_floats(const AttentionArgs& args, const DeviceSpans& spans);
void attention_decode(const AttentionArgs& args, const DeviceSpans& spans, float* scratch,
                      cudaStream_t stream);

// Of a head at most so many dimensions.
inline constexpr std::int64_t kLargestHeadDim = 256;

}  // namespace stagecoach::cuda
