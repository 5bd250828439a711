// Contract of every CPU kernel: raw pointers, sizes, strides, no allocation, no threads, no errors.
// Callers (src/backend/cpu) split the index range [begin, end) over threads; no split changes a
// bit, since each output element is computed whole by one call. `kernels/ref` is the scalar oracle
// of the same contract, `kernels/cpu` the fast bodies, compiled once per instruction set.
//
// Numbers (docs/ARCHITECTURE.md, "Numbers"): activations are float32; each output of a matrix
// product is one float32 accumulator in ascending k (or ascending groups of k), whatever the number
// of rows, so that a row's bits do not depend on its batch-mates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/include/dtype.h"
#include "kernels/include/kv_page.h"
#include "kernels/include/matmul_input.h"
#include "kernels/include/pack.h"

namespace stagecoach {

// x (rows, cols) float32 → packed rows of `type`, packed_row_stride(type, cols) bytes apart. kF32
// rounds to bfloat16 too, and keeps float32: `--activations bf16` where no instruction multiplies
// bfloat16, or for weights that are neither.
struct PackInputArgs {
  const float* x;
  std::int64_t x_stride;  // elements between rows of x
  std::byte* packed;
  std::int64_t rows, cols;
  InputType type;
};

// y (rows, out) = x (rows, in) · Wᵀ [+ bias] [+ y]. W: (out, in) in matrix_layout(weight_type).
//   x kF32   one fused multiply-add for each k, in ascending order
//   x kBF16  one bf16 dot product for each pair of k, in ascending order; of q8 and q4 weights the
//            products are with quants, and each group's sum s enters as
//            y = s · weight scale + y
//   x kInt8  a group's products add up exactly, d, and enter as
//            y = (float(d) · weight scale) · input scale + y
struct MatmulArgs {
  InputRows x;
  const std::byte* weight;
  DType weight_type;
  const float* bias;  // (out) or null
  float* y;
  std::int64_t y_stride;
  std::int64_t rows, in, out;
  bool accumulate;  // y += instead of y =; the product (with bias) is complete before y is added
};

// LayerNorm: (x − mean) / sqrt(var + eps) · weight [+ bias], biased variance (Ba et al. 2016).
// RMSNorm: x / sqrt(mean(x²) + eps) · weight (Zhang & Sennrich 2019). y may be x.
enum class NormKind : std::uint8_t { kLayerNorm, kRmsNorm };
struct NormArgs {
  const float* x;       // (rows, cols)
  const float* weight;  // (cols)
  const float* bias;    // (cols) or null
  float* y;             // (rows, cols)
  std::int64_t rows, cols;
  float epsilon;
  NormKind kind;
};

// Rotary embedding, half-split style, in place: for head h and i < rotary_dim / 2,
// (x[i], x[i + rotary_dim/2]) is rotated by angle position · inv_freq[i] (Su et al. 2021).
// cos, sin: (rows, rotary_dim / 2), see rotary_table.
struct RotaryArgs {
  float* x;  // (rows, heads · head_dim), rows x_stride apart
  std::int64_t x_stride;
  const float* cos;
  const float* sin;
  std::int64_t rows, heads, head_dim, rotary_dim;
};

// A run of consecutive positions of one sequence inside a batch of rows.
struct KvSpan {
  std::int64_t row;             // first row in the batch
  std::int64_t rows;            // number of rows
  std::int64_t position;        // position of the first row in its sequence
  std::byte* const* key_pages;  // page p holds positions [64p, 64p + 64), laid out as in kv_page.h
  std::byte* const* value_pages;
};

// Writes rows of k and v, both (rows, kv_heads · head_dim), into the pages of their spans,
// converted to `kv_type` as kv_page.h says.
struct AppendKvArgs {
  const float* k;
  const float* v;
  std::int64_t stride;  // elements between rows, of k and of v
  const KvSpan* spans;
  std::int64_t num_spans;
  KvType kv_type;
  std::int64_t kv_heads, head_dim;
};

// Causal attention with grouped-query heads: query head h reads kv head h / (heads / kv_heads).
// Online softmax (Milakov & Gimelshein 2018) over key blocks of one page, anchored at position 0:
// the order of every sum depends on the position alone. Keys and values count as the float32 that
// kv_page.h says they are; slots that a row does not see may hold anything.
// out: (rows, heads · head_dim).
//
// A score is scale · q·k, and with slopes (ALiBi, Press et al. 2022) less slope · distance: the
// distance to the query and not, as Hugging Face has it, the key's index, which differs by what
// softmax cancels and loses bits of every score as the text grows.
struct AttentionArgs {
  const float* q;
  std::int64_t q_stride;
  float* out;
  std::int64_t out_stride;
  const KvSpan* spans;
  std::int64_t num_spans;
  KvType kv_type;
  std::int64_t heads, kv_heads, head_dim;
  float scale;
  const float* slopes = nullptr;  // (heads) or null
  std::int64_t window = 0;        // keys a query sees, its own the last of them; 0: all
};

enum class Activation : std::uint8_t { kGeluTanh, kGeluErf, kRelu, kSilu };

// y[i] = activation(x[i]) [· up[i]] over `count` elements; y may be x.
struct ActivationArgs {
  const float* x;
  const float* up;  // gated MLPs; else null
  float* y;
  std::int64_t count;
  Activation kind;
};

// A product of many rows brings x into the cache once for so many panels of its range.
inline constexpr std::int64_t kMostChunkPanels = 32;

// One table per instruction set. [begin, end) counts what the comment says.
struct KernelTable {
  const char* isa;  // as STAGECOACH_ISA names it: "avx512-vnni", "avx2"
  void (*pack_input)(const PackInputArgs&, std::int64_t begin, std::int64_t end);  // rows
  // Products by the type of x, over panels of 16 outputs; bf16 is null without instructions for it.
  void (*matmul_f32)(const MatmulArgs&, std::int64_t begin, std::int64_t end);
  void (*matmul_int8)(const MatmulArgs&, std::int64_t begin, std::int64_t end);
  void (*matmul_bf16)(const MatmulArgs&, std::int64_t begin, std::int64_t end);
  void (*norm)(const NormArgs&, std::int64_t begin, std::int64_t end);              // rows
  void (*rotary)(const RotaryArgs&, std::int64_t begin, std::int64_t end);          // rows
  void (*append_kv)(const AppendKvArgs&, std::int64_t begin, std::int64_t end);     // kv heads
  void (*attention)(const AttentionArgs&, std::int64_t begin, std::int64_t end);    // query heads
  void (*activation)(const ActivationArgs&, std::int64_t begin, std::int64_t end);  // elements

  void matmul(const MatmulArgs& args, std::int64_t begin, std::int64_t end) const {
    const auto product = args.x.type == InputType::kF32    ? matmul_f32
                         : args.x.type == InputType::kInt8 ? matmul_int8
                                                           : matmul_bf16;
    product(args, begin, end);
  }
};

// The oracle: plain scalar C++, double accumulation, no blocking. Compared within tolerance.
const KernelTable& reference_kernels();

// Instruction sets that this build has and this processor can run, best first; "scalar" is last and
// always there. `kernel_table` returns null for a name that is not among them.
struct IsaList {
  const char* names[8];
  int count;
};
IsaList supported_isas();
const KernelTable* kernel_table(const char* isa);

// cos and sin of positions[r] · inv_freq[i], the product rounded to float32 as Hugging Face does.
// cos, sin: (rows, half) float32.
void rotary_table(const std::int64_t* positions, std::int64_t rows, const float* inv_freq,
                  std::int64_t half, float* cos, float* sin);

}  // namespace stagecoach
