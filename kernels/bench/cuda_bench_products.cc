// Matrix products: few rows by our own kernels, many by unpacking and cuBLAS, as
// src/backend/cuda/products.cc does it.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda_bench {
namespace {

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4};
constexpr InputType kInputs[] = {InputType::kF32, InputType::kF16, InputType::kBF16,
                                 InputType::kInt8};

// What the module multiplies.
bool multiplies(InputType input, DType type) {
  if (input == InputType::kF32) return true;
  if (input == InputType::kBF16) return type == DType::kBF16;
  return is_quantized(type) || (input == InputType::kF16 && type == DType::kF16);
}

struct Size {
  std::int64_t in, out;
  std::string text() const { return std::to_string(in) + " > " + std::to_string(out); }
};

// Panels of random weights, over and over: so the oracle computes few outputs, and all are compared
// with it. Their number is prime, or what reads a wrong panel could come upon an equal one.
struct Weights {
  static constexpr std::int64_t kPanels = 23;
  DType type;
  Size size;
  std::int64_t panels;  // that differ
  Bytes sample;
  std::int64_t bytes;  // of one matrix
  Memory device;

  std::int64_t outputs() const { return panels * kPanelRows; }
  const std::byte* copy(std::int64_t i) const { return device.data() + i * bytes; }
};

Weights make_weights(Bench& bench, DType type, const Size& size, std::int64_t copies) {
  const std::int64_t all = size.out / kPanelRows;
  Weights weights{.type = type,
                  .size = size,
                  .panels = std::min(all, Weights::kPanels),
                  .sample = {},
                  .bytes = layout_bytes(matrix_layout(type), type, size.out, size.in),
                  .device = {}};
  const Floats values = bench.random(weights.outputs() * size.in);
  weights.sample.resize(static_cast<std::size_t>(
      layout_bytes(matrix_layout(type), type, weights.outputs(), size.in)));
  pack_rows(matrix_layout(type), type, values.data(), weights.outputs(), size.in,
            weights.sample.data());
  weights.device = Memory(copies * weights.bytes);
  const Memory sample = bench.on_device(weights.sample);
  for (std::int64_t c = 0; c < copies; ++c)
    for (std::int64_t at = 0; at < weights.bytes; at += sample.bytes())
      bench.copy(weights.device.data() + c * weights.bytes + at, sample.data(),
                 std::min(sample.bytes(), weights.bytes - at));
  bench.synchronize();  // the sample is freed
  return weights;
}

// Rows of x as products read them.
struct Input {
  InputType type;
  std::int64_t rows, stride;
  Bytes packed;
  Memory device;
};

Input make_input(Bench& bench, InputType type, std::int64_t rows, std::int64_t cols) {
  const Floats x = bench.random(rows * cols);
  Input input{.type = type,
              .rows = rows,
              .stride = type == InputType::kF32 ? cols * 4 : packed_row_stride(type, cols),
              .packed = {},
              .device = {}};
  input.packed.resize(static_cast<std::size_t>(rows * input.stride));
  if (type == InputType::kF32)
    std::memcpy(input.packed.data(), x.data(), input.packed.size());
  else
    reference_kernels().pack_input({.x = x.data(),
                                    .x_stride = cols,
                                    .packed = input.packed.data(),
                                    .rows = rows,
                                    .cols = cols,
                                    .type = type},
                                   0, rows);
  input.device = bench.on_device(input.packed);
  return input;
}

MatmulArgs product_args(const Weights& weights, const InputRows& x, std::int64_t rows) {
  return {.x = x,
          .weight = weights.copy(0),
          .weight_type = weights.type,
          .bias = nullptr,
          .y = nullptr,
          .y_stride = weights.size.out,
          .rows = rows,
          .in = weights.size.in,
          .out = weights.size.out,
          .accumulate = false};
}

// (rows, weights.outputs()) of every `step`th row of x.
Floats oracle(const Weights& weights, const Input& input, std::int64_t rows, std::int64_t step) {
  Floats y(static_cast<std::size_t>(rows * weights.outputs()));
  MatmulArgs args =
      product_args(weights, {input.packed.data(), step * input.stride, input.type}, rows);
  args.weight = weights.sample.data();
  args.y = y.data();
  args.y_stride = args.out = weights.outputs();
  reference_kernels().matmul(args, 0, weights.panels);
  return y;
}

// Of rows 0, step, 2 step … of y (…, out).
double error_of(Bench& bench, const Memory& y, const Weights& weights, const Floats& expected,
                std::int64_t rows, std::int64_t step) {
  const std::int64_t out = weights.size.out, sampled = weights.outputs();
  Floats result(static_cast<std::size_t>(rows * out));
  for (std::int64_t r = 0; r < rows; ++r)
    bench.download(
        std::as_writable_bytes(std::span(result))
            .subspan(static_cast<std::size_t>(r * out * 4), static_cast<std::size_t>(out * 4)),
        y.data() + r * step * out * 4);
  return relative_error(result, [&](std::size_t i) {
    const auto at = static_cast<std::int64_t>(i);
    return expected[static_cast<std::size_t>(at / out * sampled + at % out % sampled)];
  });
}

// ---- Few rows

void few_rows(Bench& bench, const std::string& name, const Weights& weights, const Input& input,
              const Floats& expected, std::int64_t rows, std::int64_t copies) {
  const Memory y = bench.unwritten(rows * weights.size.out * 4);
  MatmulArgs args = product_args(weights, {input.device.data(), input.stride, input.type}, rows);
  args.y = y.f32();
  cuda::matmul_few_rows({&args, 1}, bench.stream());
  check(cudaGetLastError(), "starting a kernel");
  const Error error{error_of(bench, y, weights, expected, rows, 1), sum_tolerance(weights.size.in)};
  const auto in = static_cast<double>(weights.size.in), out = static_cast<double>(weights.size.out);
  const auto n = static_cast<double>(rows);
  // Of dot products of bytes no rate is measured: memory is their limit.
  bench.report(name,
               {.bytes = static_cast<double>(weights.bytes + rows * input.stride) + n * out * 4,
                .flops = 2 * n * in * out,
                .peak = input.type == InputType::kInt8 ? 0 : bench.limits().f32},
               error, copies, [&](std::int64_t copy) {
                 args.weight = weights.copy(copy);
                 cuda::matmul_few_rows({&args, 1}, bench.stream());
               });
}

void few_rows_of(Bench& bench, const Model& model, DType type, const Size& size) {
  const auto name_for = [&](InputType input, std::int64_t rows) {
    return std::string(model.name) + " few_rows " + name_of(type) + " · " + name_of(input) + " " +
           std::to_string(rows) + " x " + size.text();
  };
  const std::vector<std::int64_t> counts = bench.options().quick
                                               ? std::vector<std::int64_t>{1, 8}
                                               : std::vector<std::int64_t>{1, 2, 4, 8};
  bool any = false;
  for (const InputType input : kInputs)
    for (const std::int64_t rows : counts) any = any || bench.wanted(name_for(input, rows));
  if (!any) return;
  bench.attempt(name_for(InputType::kF32, counts[0]), [&] {
    const std::int64_t copies =
        bench.copies_of(layout_bytes(matrix_layout(type), type, size.out, size.in));
    const Weights weights = make_weights(bench, type, size, copies);
    for (const InputType input_type : kInputs) {
      if (!multiplies(input_type, type)) continue;
      const Input input = make_input(bench, input_type, cuda::kFewRows, size.in);
      const Floats expected = oracle(weights, input, cuda::kFewRows, 1);
      for (const std::int64_t rows : counts) {
        const std::string name = name_for(input_type, rows);
        if (bench.wanted(name)) few_rows(bench, name, weights, input, expected, rows, copies);
      }
    }
  });
}

// ---- Many rows

struct Arithmetic {
  InputType type;  // of both sides, unpacked
  cudaDataType_t data;
  std::int64_t bytes;
};

Arithmetic arithmetic(InputType input) {
  if (input == InputType::kF32) return {InputType::kF32, CUDA_R_32F, 4};
  if (input == InputType::kBF16) return {InputType::kBF16, CUDA_R_16BF, 2};
  return {InputType::kF16, CUDA_R_16F, 2};
}

double peak_of(const Bench& bench, InputType type) {
  if (type == InputType::kF32) return bench.limits().f32;
  return type == InputType::kBF16 ? bench.limits().bf16 : bench.limits().f16;
}

// Weights are unpacked in pieces, each multiplied at once.
struct ManyRows {
  Bench& bench;
  const Weights& weights;
  Arithmetic use;
  Memory unpacked, inputs;
  std::int64_t at_once;  // outputs

  ManyRows(Bench& b, const Weights& w, const Arithmetic& a, std::int64_t input_bytes)
      : bench(b), weights(w), use(a), at_once(0) {
    constexpr std::int64_t kUnpackedBytes = std::int64_t{64} << 20;
    const std::int64_t panels = kUnpackedBytes / (w.size.in * a.bytes * kPanelRows);
    at_once = std::min(w.size.out, std::max<std::int64_t>(1, panels) * kPanelRows);
    unpacked = Memory(at_once * w.size.in * a.bytes);
    inputs = Memory(input_bytes);
  }

  template <typename Each>
  void pieces(const Each& each) const {
    for (std::int64_t first = 0; first < weights.size.out; first += at_once)
      each(first, std::min(at_once, weights.size.out - first));
  }
  void unpack(std::int64_t first, std::int64_t count) const {
    cuda::unpack_weight({.weight = weights.copy(0),
                         .weight_type = weights.type,
                         .in = weights.size.in,
                         .first = first,
                         .count = count,
                         .to = unpacked.data(),
                         .to_type = use.type},
                        bench.stream());
  }
  void multiply(const MatmulArgs& args) const {
    const void* x = args.x.data;
    std::int64_t x_stride = args.x.stride / use.bytes;
    if (args.x.type == InputType::kInt8) {
      cuda::unpack_input({.x = args.x, .rows = args.rows, .cols = args.in, .to = inputs.data()},
                         bench.stream());
      x = inputs.data();
      x_stride = args.in;
    }
    const float one = 1.0f, zero = 0.0f;
    pieces([&](std::int64_t first, std::int64_t count) {
      unpack(first, count);
      check(cublasGemmEx(bench.cublas(), CUBLAS_OP_N, CUBLAS_OP_N, static_cast<int>(count),
                         static_cast<int>(args.rows), static_cast<int>(args.in), &one,
                         unpacked.data(), use.data, static_cast<int>(count), x, use.data,
                         static_cast<int>(x_stride), &zero, args.y + first, CUDA_R_32F,
                         static_cast<int>(args.y_stride), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
            "a matrix product");
    });
  }
};

// Of the first piece: nothing but rounding to the type is allowed.
double unpack_error(Bench& bench, const ManyRows& many) {
  const std::int64_t in = many.weights.size.in, count = many.at_once;
  const std::int64_t sampled = std::min(many.weights.outputs(), count);
  bench.fill_with_nan(many.unpacked);
  many.unpack(0, count);
  check(cudaGetLastError(), "starting a kernel");
  Bytes unpacked(static_cast<std::size_t>(many.unpacked.bytes()));
  bench.download(unpacked, many.unpacked.data());
  Floats expected(static_cast<std::size_t>(sampled * in));
  unpack_rows(matrix_layout(many.weights.type), many.weights.type, many.weights.sample.data(), in,
              0, sampled, expected.data());
  const auto element = [&](std::int64_t i) {
    if (many.use.type == InputType::kF32) {
      float value;
      std::memcpy(&value, unpacked.data() + i * 4, 4);
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, unpacked.data() + i * 2, 2);
    return many.use.type == InputType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
  };
  if (many.use.type != InputType::kF32)
    for (float& value : expected)
      value = many.use.type == InputType::kF16 ? f16_to_f32(f32_to_f16(value))
                                               : bf16_to_f32(f32_to_bf16(value));
  double worst = 0;
  for (std::int64_t k = 0; k < in; ++k)
    for (std::int64_t n = 0; n < count; ++n) {
      const float should = expected[static_cast<std::size_t>(n % sampled * in + k)];
      const double difference = std::abs(static_cast<double>(element(k * count + n) - should));
      if (std::isnan(difference)) return difference;
      worst = std::max(worst, difference);
    }
  return worst;
}

void unpacking(Bench& bench, const std::string& name, const ManyRows& many) {
  const Weights& weights = many.weights;
  const auto elements = static_cast<double>(weights.size.in * weights.size.out);
  bench.report(name,
               {.bytes = static_cast<double>(weights.bytes) +
                         elements * static_cast<double>(many.use.bytes)},
               {unpack_error(bench, many), 0}, 1, [&](std::int64_t) {
                 many.pieces([&](std::int64_t first, std::int64_t n) { many.unpack(first, n); });
               });
}

void multiplying(Bench& bench, const std::string& name, const ManyRows& many, const Input& input) {
  constexpr std::int64_t kSampledRows = 4;
  const Weights& weights = many.weights;
  const Size& size = weights.size;
  const Memory y = bench.unwritten(input.rows * size.out * 4);
  MatmulArgs args =
      product_args(weights, {input.device.data(), input.stride, input.type}, input.rows);
  args.y = y.f32();
  many.multiply(args);
  const std::int64_t step = std::max<std::int64_t>(1, (input.rows - 1) / (kSampledRows - 1));
  const Floats expected = oracle(weights, input, kSampledRows, step);
  // Quants and scales of both sides were rounded to halves.
  const bool halves = is_quantized(weights.type) && input.type != InputType::kF32;
  const auto in = static_cast<double>(size.in), out = static_cast<double>(size.out);
  const auto rows = static_cast<double>(input.rows);
  bench.report(name,
               {.bytes = static_cast<double>(weights.bytes) +
                         rows * (static_cast<double>(input.stride) + out * 4),
                .flops = 2 * rows * in * out,
                .peak = peak_of(bench, many.use.type)},
               {error_of(bench, y, weights, expected, kSampledRows, step),
                2 * sum_tolerance(size.in) + (halves ? 8 * 0x1p-11 : 0.0)},
               1, [&](std::int64_t) { many.multiply(args); });
}

void many_rows(Bench& bench, const Model& model, DType type, InputType input_type,
               const Size& size) {
  const Arithmetic use = arithmetic(input_type);
  const std::string unpack = std::string(model.name) + " unpack " + name_of(type) + " to " +
                             name_of(use.type) + " " + size.text();
  const std::string product = std::string(model.name) + " unpack+cuBLAS " + name_of(type) + " · " +
                              name_of(input_type) + " " + std::to_string(model.rows) + " x " +
                              size.text();
  const bool same = input_type == InputType::kInt8;  // as of kF16
  if (!bench.wanted(product) && (same || !bench.wanted(unpack))) return;
  bench.attempt(product, [&] {
    const Weights weights = make_weights(bench, type, size, 1);
    const ManyRows many(bench, weights, use, model.rows * size.in * 2);
    if (!same && bench.wanted(unpack)) unpacking(bench, unpack, many);
    if (bench.wanted(product))
      multiplying(bench, product, many, make_input(bench, input_type, model.rows, size.in));
  });
}

// ---- A layer's products in cuBLAS and nothing else: what the time of a whole layer is compared
// with.

void layer_products(Bench& bench, const Model& model, InputType type) {
  const std::string name = std::string(model.name) + " layer's products in cuBLAS " +
                           name_of(type) + " " + std::to_string(model.rows) + " rows";
  if (!bench.wanted(name)) return;
  bench.attempt(name, [&] {
    const std::int64_t h = model.hidden, mlp = model.mlp();
    const Size sizes[] = {{h, 3 * h}, {h, h}, {h, mlp}, {mlp, h}};
    std::int64_t elements = 0;
    for (const Size& size : sizes) elements += size.in * size.out;
    // Random numbers, over and over.
    constexpr std::int64_t kSample = 1 << 16;
    const Floats values = bench.random(kSample);
    Bytes sample(kSample * 2);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const std::uint16_t bits =
          type == InputType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
      std::memcpy(&sample[2 * i], &bits, sizeof bits);
    }
    const auto filled = [&](std::int64_t count) {
      return bench.copies_on_device(sample, (count + kSample - 1) / kSample);
    };
    const Memory weights = filled(elements), x = filled(model.rows * mlp);
    const Memory y = bench.unwritten(model.rows * mlp * 4);
    const cudaDataType_t data = arithmetic(type).data;
    const auto multiply = [&](cublasOperation_t of_weights) {
      const float one = 1.0f, zero = 0.0f;
      std::int64_t at = 0;
      for (const Size& size : sizes) {
        const std::int64_t stride = of_weights == CUBLAS_OP_T ? size.in : size.out;
        check(cublasGemmEx(bench.cublas(), of_weights, CUBLAS_OP_N, static_cast<int>(size.out),
                           static_cast<int>(model.rows), static_cast<int>(size.in), &one,
                           weights.data() + 2 * at, data, static_cast<int>(stride), x.data(), data,
                           static_cast<int>(size.in), &zero, y.data(), CUDA_R_32F,
                           static_cast<int>(size.out), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              "a matrix product");
        at += size.in * size.out;
      }
    };
    // Weights in whichever order cuBLAS is faster with.
    const auto seconds = [&](cublasOperation_t of_weights) {
      return bench.seconds(1, [&](std::int64_t) { multiply(of_weights); });
    };
    const cublasOperation_t best =
        seconds(CUBLAS_OP_T) < seconds(CUBLAS_OP_N) ? CUBLAS_OP_T : CUBLAS_OP_N;
    bench.report(name,
                 {.bytes = 2 * static_cast<double>(elements),
                  .flops = 2 * static_cast<double>(model.rows) * static_cast<double>(elements),
                  .peak = peak_of(bench, type)},
                 kNotCompared, 1, [&](std::int64_t) { multiply(best); });
  });
}

}  // namespace

void bench_products(Bench& bench, const Model& model) {
  std::vector<Size> sizes{{model.hidden, model.hidden}};
  if (!bench.options().quick) {
    sizes.push_back({model.hidden, model.mlp()});
    sizes.push_back({model.mlp(), model.hidden});
  }
  for (const DType type : kTypes)
    for (const Size& size : sizes) few_rows_of(bench, model, type, size);
  for (const DType type : kTypes)
    for (const InputType input : kInputs)
      for (const Size& size : sizes)
        if (multiplies(input, type) && size.in == model.hidden)
          many_rows(bench, model, type, input, size);
  for (const InputType type : {InputType::kF16, InputType::kBF16})
    layer_products(bench, model, type);
}

}  // namespace stagecoach::cuda_bench
