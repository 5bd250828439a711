// What touches each element a few times: bounded by memory, or by starting a kernel at all.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda_bench {
namespace {

constexpr std::int64_t kFloat = 4;

// One model's ops over so many rows.
class Elementwise {
 public:
  Elementwise(Bench& bench, const Model& model, std::int64_t rows)
      : bench_(bench), model_(model), rows_(rows) {}

  void run() {
    for (const NormKind kind : {NormKind::kLayerNorm, NormKind::kRmsNorm})
      line(kind == NormKind::kLayerNorm ? "layer norm" : "rms norm", model_.hidden,
           [&](const std::string& name) { norm(name, kind); });
    line("gelu tanh", model_.mlp(),
         [&](const std::string& name) { activation(name, Activation::kGeluTanh, false); });
    line("gated silu", model_.mlp(),
         [&](const std::string& name) { activation(name, Activation::kSilu, true); });
    line("rotary", model_.hidden, [&](const std::string& name) { rotary(name); });
    for (const InputType type :
         {InputType::kF32, InputType::kF16, InputType::kBF16, InputType::kInt8})
      line(std::string("pack_input ") + name_of(type), model_.hidden,
           [&](const std::string& name) { pack_input(name, type); });
    if (rows_ > 1)
      line("unpack_input int8", model_.hidden,
           [&](const std::string& name) { unpack_input(name); });
    line("add_bias", model_.hidden, [&](const std::string& name) { add_bias(name); });
    for (const DType type : {DType::kF16, DType::kQ4})
      line(std::string("gather_rows ") + name_of(type), model_.hidden,
           [&](const std::string& name) { gather_rows(name, type); });
  }

 private:
  template <typename Run>
  void line(const std::string& op, std::int64_t cols, const Run& run) {
    const std::string name = std::string(model_.name) + " " + op + " " + std::to_string(rows_) +
                             " x " + std::to_string(cols);
    if (bench_.wanted(name)) bench_.attempt(name, [&] { run(name); });
  }
  static double number(std::int64_t n) { return static_cast<double>(n); }
  void started() { check(cudaGetLastError(), "starting a kernel"); }

  void norm(const std::string& name, NormKind kind) {
    const std::int64_t cols = model_.hidden, count = rows_ * cols;
    const Floats x = bench_.random(count), weight = bench_.random(cols), bias = bench_.random(cols);
    const bool biased = kind == NormKind::kLayerNorm;
    Floats expected(x.size());
    NormArgs args = {.x = x.data(),
                     .weight = weight.data(),
                     .bias = biased ? bias.data() : nullptr,
                     .y = expected.data(),
                     .rows = rows_,
                     .cols = cols,
                     .epsilon = 1e-5f,
                     .kind = kind};
    reference_kernels().norm(args, 0, rows_);
    const std::int64_t copies = bench_.copies_of(2 * count * kFloat);
    const Memory device_x = bench_.copies_on_device(std::as_bytes(std::span(x)), copies),
                 y = bench_.unwritten(copies * count * kFloat),
                 device_weight = bench_.on_device(weight), device_bias = bench_.on_device(bias);
    args.weight = device_weight.f32();
    args.bias = biased ? device_bias.f32() : nullptr;
    const auto queue = [&](std::int64_t copy) {
      args.x = device_x.f32() + copy * count;
      args.y = y.f32() + copy * count;
      cuda::norm(args, bench_.stream());
    };
    report(name, {.bytes = 8 * number(count), .flops = 8 * number(count)}, y, expected, 1e-5,
           copies, queue);
  }

  void activation(const std::string& name, Activation kind, bool gated) {
    const std::int64_t count = rows_ * model_.mlp();
    const Floats x = bench_.random(count), up = gated ? bench_.random(count) : Floats();
    Floats expected(x.size());
    ActivationArgs args = {.x = x.data(),
                           .up = gated ? up.data() : nullptr,
                           .y = expected.data(),
                           .count = count,
                           .kind = kind};
    reference_kernels().activation(args, 0, count);
    const std::int64_t copies = bench_.copies_of((gated ? 3 : 2) * count * kFloat);
    const Memory device_x = bench_.copies_on_device(std::as_bytes(std::span(x)), copies),
                 y = bench_.unwritten(copies * count * kFloat);
    const Memory device_up =
        gated ? bench_.copies_on_device(std::as_bytes(std::span(up)), copies) : Memory();
    const auto queue = [&](std::int64_t copy) {
      args.x = device_x.f32() + copy * count;
      args.up = gated ? device_up.f32() + copy * count : nullptr;
      args.y = y.f32() + copy * count;
      cuda::activation(args, bench_.stream());
    };
    report(name, {.bytes = (gated ? 12 : 8) * number(count), .flops = 20 * number(count)}, y,
           expected, 1e-5, copies, queue);
  }

  void rotary(const std::string& name) {
    const std::int64_t width = model_.heads * model_.head_dim, half = model_.rotary_dim / 2;
    const std::int64_t count = rows_ * width;
    const Floats x = bench_.random(count), inv_freq = bench_.random(half);
    std::vector<std::int64_t> positions;
    for (std::int64_t r = 0; r < rows_; ++r) positions.push_back(r);
    Floats cos(static_cast<std::size_t>(rows_ * half)), sin = cos, expected = x;
    rotary_table(positions.data(), rows_, inv_freq.data(), half, cos.data(), sin.data());
    RotaryArgs args = {.x = expected.data(),
                       .x_stride = width,
                       .cos = cos.data(),
                       .sin = sin.data(),
                       .rows = rows_,
                       .heads = model_.heads,
                       .head_dim = model_.head_dim,
                       .rotary_dim = model_.rotary_dim};
    reference_kernels().rotary(args, 0, rows_);
    const std::int64_t copies = bench_.copies_of(count * kFloat);
    const Memory device_x = bench_.copies_on_device(std::as_bytes(std::span(x)), copies),
                 device_cos = bench_.on_device(cos), device_sin = bench_.on_device(sin);
    args.cos = device_cos.f32();
    args.sin = device_sin.f32();
    const double rotated = number(rows_ * model_.heads * model_.rotary_dim);
    report(name, {.bytes = 8 * rotated + 8 * number(rows_ * half), .flops = 3 * rotated}, device_x,
           expected, 1e-5, copies, [&](std::int64_t copy) {
             args.x = device_x.f32() + copy * count;
             cuda::rotary(args, bench_.stream());
           });
  }

  void pack_input(const std::string& name, InputType type) {
    const std::int64_t cols = model_.hidden, count = rows_ * cols;
    const std::int64_t stride = packed_row_stride(type, cols);
    const Floats x = bench_.random(count);
    Bytes expected(static_cast<std::size_t>(rows_ * stride), std::byte{0xff}), found = expected;
    PackInputArgs args = {.x = x.data(),
                          .x_stride = cols,
                          .packed = expected.data(),
                          .rows = rows_,
                          .cols = cols,
                          .type = type};
    reference_kernels().pack_input(args, 0, rows_);
    const std::int64_t copies = bench_.copies_of(count * kFloat + rows_ * stride);
    const Memory device_x = bench_.copies_on_device(std::as_bytes(std::span(x)), copies),
                 packed = bench_.unwritten(copies * rows_ * stride);
    const auto queue = [&](std::int64_t copy) {
      args.x = device_x.f32() + copy * count;
      args.packed = packed.data() + copy * rows_ * stride;
      cuda::pack_input(args, bench_.stream());
    };
    queue(0);
    started();
    bench_.download(found, packed.data());
    double wrong = 0;
    for (std::size_t i = 0; i < found.size(); ++i) wrong += found[i] != expected[i];
    bench_.report(name, {.bytes = number(count * kFloat + rows_ * stride)}, {wrong, 0}, copies,
                  queue);
  }

  void unpack_input(const std::string& name) {
    const std::int64_t cols = model_.hidden, count = rows_ * cols;
    const std::int64_t stride = packed_row_stride(InputType::kInt8, cols);
    const Floats x = bench_.random(count);
    Bytes packed(static_cast<std::size_t>(rows_ * stride));
    reference_kernels().pack_input({.x = x.data(),
                                    .x_stride = cols,
                                    .packed = packed.data(),
                                    .rows = rows_,
                                    .cols = cols,
                                    .type = InputType::kInt8},
                                   0, rows_);
    const Memory device = bench_.on_device(packed), to = bench_.unwritten(count * 2);
    const auto queue = [&](std::int64_t) {
      cuda::unpack_input({.x = {device.data(), stride, InputType::kInt8},
                          .rows = rows_,
                          .cols = cols,
                          .to = to.data()},
                         bench_.stream());
    };
    queue(0);
    started();
    std::vector<std::uint16_t> halves(x.size());
    bench_.download(std::as_writable_bytes(std::span(halves)), to.data());
    double wrong = 0;
    for (std::int64_t r = 0; r < rows_; ++r)
      for (std::int64_t k = 0; k < cols; ++k) {
        const auto& group =
            reinterpret_cast<const InputGroup*>(packed.data() + r * stride)[k / kGroupCols];
        const float value = group.scale * static_cast<float>(group.quant[k % kGroupCols]);
        wrong += halves[static_cast<std::size_t>(r * cols + k)] != f32_to_f16(value);
      }
    bench_.report(name, {.bytes = number(rows_ * stride + 2 * count)}, {wrong, 0}, 1, queue);
  }

  void add_bias(const std::string& name) {
    const std::int64_t out = model_.hidden, count = rows_ * out;
    const Floats bias = bench_.random(out);
    const std::int64_t copies = bench_.copies_of(count * kFloat);
    const Memory y = bench_.unwritten(copies * count * kFloat),
                 device_bias = bench_.on_device(bias);
    MatmulArgs args = {.x = {},
                       .weight = nullptr,
                       .weight_type = DType::kF32,
                       .bias = device_bias.f32(),
                       .y = nullptr,
                       .y_stride = out,
                       .rows = rows_,
                       .in = 0,
                       .out = out,
                       .accumulate = false};
    Floats expected;
    for (std::int64_t r = 0; r < rows_; ++r)
      expected.insert(expected.end(), bias.begin(), bias.end());
    report(name, {.bytes = number((count + out) * kFloat)}, y, expected, 0, copies,
           [&](std::int64_t copy) {
             args.y = y.f32() + copy * count;
             cuda::add_bias(args, bench_.stream());
           });
  }

  // A table of which every row is read at most once.
  void gather_rows(const std::string& name, DType type) {
    const std::int64_t cols = model_.hidden, rows = std::max(rows_, 4 * kPanelRows);
    const Layout layout = is_quantized(type) ? matrix_layout(type) : Layout::kRows;
    const Floats values = bench_.random(rows * cols);
    Bytes table(static_cast<std::size_t>(layout_bytes(layout, type, rows, cols)));
    pack_rows(layout, type, values.data(), rows, cols, table.data());
    std::vector<std::int32_t> ids;
    for (std::int64_t i = 0; i < rows_; ++i)
      ids.push_back(static_cast<std::int32_t>((i * 7919 + 13) % rows));
    Floats expected(static_cast<std::size_t>(rows_ * cols));
    for (std::int64_t i = 0; i < rows_; ++i)
      unpack_rows(layout, type, table.data(), cols, ids[static_cast<std::size_t>(i)], 1,
                  expected.data() + i * cols);
    const Memory device_table = bench_.on_device(table),
                 device_ids = bench_.on_device(std::as_bytes(std::span(ids))),
                 out = bench_.unwritten(rows_ * cols * kFloat);
    const double row_bytes = number(layout_row_bytes(layout, type, cols));
    report(name, {.bytes = number(rows_) * (row_bytes + number(cols) * 4)}, out, expected, 0, 1,
           [&](std::int64_t) {
             cuda::gather_rows({.table = device_table.data(),
                                .type = type,
                                .layout = layout,
                                .cols = cols,
                                .ids = reinterpret_cast<const std::int32_t*>(device_ids.data()),
                                .count = rows_,
                                .out = out.f32(),
                                .accumulate = false},
                               bench_.stream());
           });
  }

  // Checks what the first call leaves in `result`, of which the first copy counts.
  void report(const std::string& name, const Work& work, const Memory& result,
              const Floats& expected, double tolerance, std::int64_t copies,
              const Bench::Queue& queue) {
    queue(0);
    started();
    Floats found(expected.size());
    bench_.download(std::as_writable_bytes(std::span(found)), result.data());
    const double worst = relative_error(found, [&](std::size_t i) { return expected[i]; });
    bench_.report(name, work, {worst, tolerance}, copies, queue);
  }

  Bench& bench_;
  const Model& model_;
  const std::int64_t rows_;
};

}  // namespace

void bench_elementwise(Bench& bench, const Model& model) {
  for (const std::int64_t rows : {std::int64_t{1}, model.rows})
    Elementwise(bench, model, rows).run();
}

}  // namespace stagecoach::cuda_bench
