// kernels_bench [--threads N] [ISA [TEXT]]: every kernel of one instruction set (default: the best
// here) whose name line contains TEXT (default: all), on N cores (default: one): checked against
// the oracle on fresh random data, then timed, with its share of these cores' measured limits.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/bench/crew.h"
#include "kernels/include/ops.h"
#include "kernels/probe/probe.h"

namespace stagecoach {
namespace {

using Floats = std::vector<float>;

struct Limits {
  double f32, bf16, int8;  // operations per second
};

constexpr std::size_t kProbeBytes = std::size_t{256} << 20;
constexpr int kRepetitions = 7;

constexpr const char* kTypeNames[] = {"f32", "f16", "bf16", "q8", "q4"};
constexpr const char* kInputNames[] = {"f32", "bf16", "int8"};

// In large pages where the system has them, as the backend holds weights.
class LargeBuffer {
 public:
  explicit LargeBuffer(std::size_t bytes) : bytes_(bytes) {
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    ::madvise(data, bytes, MADV_HUGEPAGE);
    data_ = static_cast<std::byte*>(data);
  }
  LargeBuffer(const LargeBuffer&) = delete;
  LargeBuffer& operator=(const LargeBuffer&) = delete;
  ~LargeBuffer() { ::munmap(data_, bytes_); }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_;
  std::size_t bytes_;
};

class Bench {
 public:
  Bench(const KernelTable& kernels, const char* only, int threads)
      : kernels_(kernels), only_(only), crew_(threads), generator_(std::random_device{}()) {
    const auto peak = [&](DotType type) {
      return probe_dot_of(kernels.isa, type, {.threads = threads}).ops_per_second;
    };
    limits_ = {peak(DotType::kF32), peak(DotType::kBF16), peak(DotType::kInt8)};
    std::printf(
        "%s, threads: %d; f32 %.1f, bf16 %.1f GFLOP/s, int8 %.1f GOP/s, reads %.1f GB/s\n\n",
        kernels.isa, threads, limits_.f32 * 1e-9, limits_.bf16 * 1e-9, limits_.int8 * 1e-9,
        probe_memory_read(kProbeBytes, {.threads = threads}) * 1e-9);
    std::printf("%-34s %10s %9s %7s %8s %7s %10s\n", "kernel", "ms", "GFLOP/s", "of peak", "GB/s",
                "of read", "max error");
  }

  void run() {
    for (const DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4}) {
      for (const InputType input : {InputType::kF32, InputType::kBF16, InputType::kInt8}) {
        if (!multiplies(input, type)) continue;
        for (const std::int64_t rows : {1, 2, 4, 8, 12, 16, 24, 32})
          matmul(type, input, rows, 4096, outputs_of(type));
        matmul(type, input, 512, 2048, 2048);
      }
    }
    // Each of these groups costs seconds of oracle: all of a group or none.
    if (wanted("layer norm, rms norm")) {
      norm(NormKind::kLayerNorm);
      norm(NormKind::kRmsNorm);
    }
    if (wanted("rotary")) rotary();
    for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8}) {
      if (!wanted("append kv, attention")) break;
      attention(type, 512, 512, 16);
      attention(type, 2048, 2048, 4);
      attention(type, 1, 2048, 64);
    }
    if (wanted("gelu tanh, gelu erf, silu")) {
      activation("gelu tanh", Activation::kGeluTanh);
      activation("gelu erf", Activation::kGeluErf);
      activation("silu", Activation::kSilu);
    }
  }

  bool all_agreed() const { return agreed_; }

 private:
  struct Work {
    double flops, bytes;
    double peak;  // operations per second that it could do at most
  };

  bool multiplies(InputType input, DType weights) const {
    if (input == InputType::kF32) return true;
    if (input == InputType::kInt8) return is_quantized(weights);
    return kernels_.matmul_bf16 != nullptr && (is_quantized(weights) || weights == DType::kBF16);
  }
  double peak(InputType input) const {
    return input == InputType::kF32    ? limits_.f32
           : input == InputType::kBF16 ? limits_.bf16
                                       : limits_.int8;
  }

  // Outputs of 4,096 inputs that take 128 MB, more than a cache holds.
  static std::int64_t outputs_of(DType type) {
    return (std::int64_t{128} << 20) / layout_row_bytes(matrix_layout(type), type, 4096) /
           kPanelRows * kPanelRows;
  }

  bool wanted(const std::string& name) const { return name.find(only_) != std::string::npos; }

  Floats random(std::int64_t count) {
    // Uniform: drawing a billion normals would take longer than the kernels.
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    Floats values(static_cast<std::size_t>(count));
    for (float& value : values) value = uniform(generator_);
    return values;
  }

  // Largest |actual − expected| relative to the norm of `expected` per element.
  double error(const Floats& actual, const Floats& expected, double tolerance) {
    double worst = 0, square = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      worst = std::max(worst,
                       std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i])));
      square += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
    }
    worst /= std::sqrt(square / static_cast<double>(actual.size()));
    if (!(worst <= tolerance)) agreed_ = false;
    return worst;
  }

  // run(begin, end) computes a range of `items`, which the threads share.
  template <typename Run>
  void report(const std::string& name, Work work, double max_error, std::int64_t items,
              const Run& run) {
    std::vector<double> seconds, shares;
    crew_.run(items, run);
    for (int i = 0; i < kRepetitions; ++i) {
      // What memory gives changes from second to second where other machines share it.
      const double read =
          probe_memory_read(kProbeBytes, {.threads = crew_.threads(), .windows = 4});
      seconds.push_back(crew_.run(items, run));
      shares.push_back(work.bytes / seconds.back() / read);
    }
    const double typical = median(seconds);
    const double flops = work.flops / typical, rate = work.bytes / typical;
    std::printf("%-34s %10.3f %9.1f %6.0f%% %8.1f %6.0f%% %10.1e\n", name.c_str(), typical * 1e3,
                flops * 1e-9, 100 * flops / work.peak, rate * 1e-9, 100 * median(shares),
                max_error);
    std::fflush(stdout);
  }

  void matmul(DType type, InputType input, std::int64_t rows, std::int64_t in, std::int64_t out) {
    const std::string name = "matmul " + std::string(kTypeNames[static_cast<int>(type)]) + " · " +
                             kInputNames[static_cast<int>(input)] + " " + std::to_string(rows) +
                             " x " + std::to_string(in) + " x " + std::to_string(out);
    if (!wanted(name)) return;
    const Floats x = random(rows * in);
    const std::int64_t packed_stride = packed_row_stride(input, in);
    std::vector<std::byte> packed(static_cast<std::size_t>(rows * packed_stride));
    const PackInputArgs pack = {.x = x.data(),
                                .x_stride = in,
                                .packed = packed.data(),
                                .rows = rows,
                                .cols = in,
                                .type = input};
    if (input != InputType::kF32) kernels_.pack_input(pack, 0, rows);
    Floats y(static_cast<std::size_t>(rows * out)), expected = y;
    // One random panel block, repeated: values do not change the speed, generating them does.
    const Floats block = random(kPanelRows * in);
    const std::int64_t panels = out / kPanelRows;
    const Layout layout = matrix_layout(type);
    const std::int64_t panel_bytes = layout_bytes(layout, type, kPanelRows, in);
    LargeBuffer weight(static_cast<std::size_t>(panels * panel_bytes));
    for (std::int64_t p = 0; p < panels; ++p)
      pack_rows(layout, type, block.data(), kPanelRows, in, weight.data() + p * panel_bytes);
    MatmulArgs args = {.x = input == InputType::kF32
                                ? f32_rows(x.data(), in)
                                : InputRows{packed.data(), packed_stride, input},
                       .weight = weight.data(),
                       .weight_type = type,
                       .bias = nullptr,
                       .y = expected.data(),
                       .y_stride = out,
                       .rows = rows,
                       .in = in,
                       .out = out,
                       .accumulate = false};
    // The oracle takes seconds on the whole: check the first, a middle and the last panel.
    const std::int64_t checked[] = {0, panels / 2, panels - 1};
    for (const std::int64_t p : checked) {
      args.y = expected.data();
      reference_kernels().matmul(args, p, p + 1);
      args.y = y.data();
      kernels_.matmul(args, p, p + 1);
    }
    const double max_error = error(y, expected, 64 * 0x1p-24 * std::sqrt(static_cast<double>(in)));
    report(name,
           {2.0 * static_cast<double>(rows * in * out), static_cast<double>(panels * panel_bytes),
            peak(input)},
           max_error, panels, [&](auto begin, auto end) { kernels_.matmul(args, begin, end); });
  }

  void norm(NormKind kind) {
    const std::int64_t rows = 512, cols = 4096;
    const Floats x = random(rows * cols), weight = random(cols), bias = random(cols);
    Floats y(x.size()), expected(x.size());
    NormArgs args = {.x = x.data(),
                     .weight = weight.data(),
                     .bias = kind == NormKind::kLayerNorm ? bias.data() : nullptr,
                     .y = expected.data(),
                     .rows = rows,
                     .cols = cols,
                     .epsilon = 1e-5f,
                     .kind = kind};
    reference_kernels().norm(args, 0, rows);
    args.y = y.data();
    kernels_.norm(args, 0, rows);
    report(kind == NormKind::kLayerNorm ? "layer norm 512 x 4096" : "rms norm 512 x 4096",
           {8.0 * static_cast<double>(rows * cols), 8.0 * static_cast<double>(rows * cols),
            limits_.f32},
           error(y, expected, 1e-5), rows,
           [&](auto begin, auto end) { kernels_.norm(args, begin, end); });
  }

  void rotary() {
    const std::int64_t rows = 512, heads = 32, head_dim = 128, half = head_dim / 2;
    Floats x = random(rows * heads * head_dim), expected = x;
    const Floats inv_freq = random(half);
    std::vector<std::int64_t> positions;
    for (std::int64_t r = 0; r < rows; ++r) positions.push_back(r);
    Floats cos(static_cast<std::size_t>(rows * half)), sin = cos;
    rotary_table(positions.data(), rows, inv_freq.data(), half, cos.data(), sin.data());
    RotaryArgs args = {.x = expected.data(),
                       .x_stride = heads * head_dim,
                       .cos = cos.data(),
                       .sin = sin.data(),
                       .rows = rows,
                       .heads = heads,
                       .head_dim = head_dim,
                       .rotary_dim = head_dim};
    reference_kernels().rotary(args, 0, rows);
    args.x = x.data();
    kernels_.rotary(args, 0, rows);
    const double elements = static_cast<double>(rows * heads * head_dim);
    report("rotary 512 x 32 x 128", {3 * elements, 8 * elements, limits_.f32},
           error(x, expected, 1e-5), rows,
           [&](auto begin, auto end) { kernels_.rotary(args, begin, end); });
  }

  // `rows` new tokens at the end of `context` positions; one kv head per query head.
  void attention(KvType type, std::int64_t rows, std::int64_t context, std::int64_t heads) {
    const std::int64_t head_dim = 128, width = heads * head_dim;
    const Floats q = random(rows * width), k = random(context * width), v = random(context * width);
    Floats out(q.size()), expected(q.size());
    const std::int64_t page_bytes = heads * kv_head_bytes(type, head_dim);
    std::vector<std::vector<std::byte>> pages;
    std::vector<std::byte*> key_pages, value_pages;
    const std::int64_t num_pages = (context + kKvPageTokens - 1) / kKvPageTokens;
    for (std::int64_t p = 0; p < 2 * num_pages; ++p) pages.emplace_back(page_bytes);
    for (std::int64_t p = 0; p < num_pages; ++p) {
      key_pages.push_back(pages[static_cast<std::size_t>(2 * p)].data());
      value_pages.push_back(pages[static_cast<std::size_t>(2 * p + 1)].data());
    }
    const KvSpan all = {.row = 0,
                        .rows = context,
                        .position = 0,
                        .key_pages = key_pages.data(),
                        .value_pages = value_pages.data()};
    const AppendKvArgs append = {.k = k.data(),
                                 .v = v.data(),
                                 .stride = width,
                                 .spans = &all,
                                 .num_spans = 1,
                                 .kv_type = type,
                                 .kv_heads = heads,
                                 .head_dim = head_dim};
    KvSpan span = all;
    span.rows = rows;
    span.position = context - rows;
    AttentionArgs args = {.q = q.data(),
                          .q_stride = width,
                          .out = expected.data(),
                          .out_stride = width,
                          .spans = &span,
                          .num_spans = 1,
                          .kv_type = type,
                          .heads = heads,
                          .kv_heads = heads,
                          .head_dim = head_dim,
                          .scale = 0.088f};
    kernels_.append_kv(append, 0, heads);
    // The oracle takes seconds on the whole: check one head.
    const std::int64_t checked = heads / 2;
    reference_kernels().attention(args, checked, checked + 1);
    args.out = out.data();
    kernels_.attention(args, checked, checked + 1);
    const double max_error = error(out, expected, 1e-4 * std::sqrt(static_cast<double>(heads)));
    const char* names[] = {"f32", "f16", "q8"};
    const std::string shape = std::string(names[static_cast<int>(type)]) + " " +
                              std::to_string(rows) + " of " + std::to_string(context) + " x " +
                              std::to_string(heads) + " x 128";
    const double kv_bytes = 2.0 * static_cast<double>(num_pages * page_bytes);
    if (rows == context)
      report("append kv " + shape,
             {0, 8.0 * static_cast<double>(context * width) + kv_bytes, limits_.f32}, 0, heads,
             [&](auto begin, auto end) { kernels_.append_kv(append, begin, end); });
    double keys = 0;
    for (std::int64_t r = 0; r < rows; ++r) keys += static_cast<double>(span.position + r + 1);
    report("attention " + shape, {4.0 * keys * static_cast<double>(width), kv_bytes, limits_.f32},
           max_error, heads, [&](auto begin, auto end) { kernels_.attention(args, begin, end); });
  }

  void activation(const std::string& name, Activation kind) {
    const std::int64_t count = 4 << 20;
    const Floats x = random(count);
    Floats y(x.size()), expected(x.size());
    ActivationArgs args = {
        .x = x.data(), .up = nullptr, .y = expected.data(), .count = count, .kind = kind};
    reference_kernels().activation(args, 0, count);
    args.y = y.data();
    kernels_.activation(args, 0, count);
    report(name + " 4 Mi",
           {20.0 * static_cast<double>(count), 8.0 * static_cast<double>(count), limits_.f32},
           error(y, expected, 1e-6), count,
           [&](auto begin, auto end) { kernels_.activation(args, begin, end); });
  }

  const KernelTable& kernels_;
  const char* only_;
  Crew crew_;
  std::mt19937 generator_;
  Limits limits_;
  bool agreed_ = true;
};

constexpr const char* kUsage =
    "usage: kernels_bench [--threads N] [ISA [TEXT]]\n"
    "Checks and times every kernel of an instruction set (the best here) whose line has TEXT in\n"
    "it, on N cores (one), beside what these cores are measured to do.\n";

int run_bench(const std::vector<std::string>& arguments) {
  if (arguments.size() == 1 && arguments[0] == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  int threads = 1;
  std::size_t next = 0;
  if (!arguments.empty() && arguments[0] == "--threads") {
    threads = arguments.size() > 1 ? std::atoi(arguments[1].c_str()) : 0;
    next = 2;
  }
  if (threads < 1 || threads > 1024 || arguments.size() > next + 2) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const auto argument = [&](std::size_t i, const char* otherwise) {
    return i < arguments.size() ? arguments[i].c_str() : otherwise;
  };
  const char* const isa = argument(next, supported_isas().names[0]);
  const KernelTable* kernels = kernel_table(isa);
  if (kernels == nullptr) {
    std::fprintf(stderr, "instruction set '%s' does not run here; these do:", isa);
    const IsaList isas = supported_isas();
    for (int i = 0; i < isas.count; ++i) std::fprintf(stderr, " %s", isas.names[i]);
    std::fprintf(stderr, "\n");
    return 2;
  }
  Bench bench(*kernels, argument(next + 1, ""), threads);
  bench.run();
  if (bench.all_agreed()) return 0;
  std::fprintf(stderr, "a kernel disagrees with its oracle\n");
  return 1;
}

}  // namespace
}  // namespace stagecoach

int main(int argc, char** argv) {
  return stagecoach::run_bench({argv + 1, argv + argc});
}
