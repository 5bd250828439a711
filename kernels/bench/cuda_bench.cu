// cuda_bench [--device N] [--quick] [--json] [--seed N] [TEXT]: every CUDA kernel whose name line
// contains TEXT (default: all) at the widths of GPT-J and GPT-3, checked against the oracle on
// fresh random data, then timed, with its share of the card's measured limits: memory's read rate,
// or cuBLAS's rate in the type that is multiplied, whichever is nearer. Of several copies of the
// data that together are larger than L2, each call takes the next.
//
// --tiny has shapes for simulated devices (tests/cuda_sim), whose times mean nothing.
//
// Exit codes: 1 a kernel disagrees with its oracle, 2 usage, 4 no card, or it failed.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string_view>

#include "kernels/bench/cuda_bench.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda_bench {
namespace {

constexpr unsigned kBlocksPerMultiprocessor = 8;

constexpr Model kModels[] = {
    {"GPT-J", 4096, 16, 256, 64, 2048, 2048},
    {"GPT-3", 12288, 96, 128, 128, 2048, 2048},
};
constexpr Model kTiny[] = {
    {"tiny", 128, 4, 32, 16, 20, 70},
    {"tiny wide", 256, 2, 128, 32, 35, 300},
};

double read_rate(Bench& bench) {
  const bool tiny = bench.options().tiny;
  const std::int64_t bytes = tiny ? 1 << 16 : std::int64_t{1} << 30;
  const unsigned blocks =
      tiny ? 2 : static_cast<unsigned>(bench.card().multiProcessorCount) * kBlocksPerMultiprocessor;
  const Memory words = bench.unwritten(bytes);
  const Memory sums(std::int64_t{blocks} * cuda::kReadThreads * 4);
  return static_cast<double>(bytes) / bench.seconds(1, [&](std::int64_t) {
    cuda::read_memory(words.data(), bytes, blocks, reinterpret_cast<std::uint32_t*>(sums.data()),
                      bench.stream());
  });
}

void measure_copies(Bench& bench, Limits& limits) {
  const std::int64_t bytes = bench.options().tiny ? 1 << 16 : std::int64_t{256} << 20;
  void* host = nullptr;
  check(cudaHostAlloc(&host, static_cast<std::size_t>(bytes), cudaHostAllocDefault),
        "allocating page-locked memory");
  std::memset(host, 1, static_cast<std::size_t>(bytes));
  {
    const Memory device = bench.unwritten(bytes);
    const auto rate = [&](void* to, const void* from, cudaMemcpyKind kind) {
      return static_cast<double>(bytes) / bench.seconds(1, [&](std::int64_t) {
        check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, bench.stream()),
              "copying");
      });
    };
    limits.to_device = rate(device.data(), host, cudaMemcpyHostToDevice);
    limits.to_host = rate(host, device.data(), cudaMemcpyDeviceToHost);
  }
  cudaFreeHost(host);
}

// Operations a second of cuBLAS on square matrices of random numbers: of zeros it can be faster.
double product_rate(Bench& bench, InputType type) {
  const std::int64_t n = bench.options().tiny ? 32 : 4096;
  const Floats values = bench.random(n * n);
  const Memory source = bench.on_device(values), packed(n * packed_row_stride(type, n)),
               result(n * n * 4);
  const bool plain = type == InputType::kF32;
  if (!plain)
    cuda::pack_input({.x = source.f32(),
                      .x_stride = n,
                      .packed = packed.data(),
                      .rows = n,
                      .cols = n,
                      .type = type},
                     bench.stream());
  const void* const matrix = plain ? source.data() : packed.data();
  const cudaDataType_t data = plain                     ? CUDA_R_32F
                              : type == InputType::kF16 ? CUDA_R_16F
                                                        : CUDA_R_16BF;
  const int size = static_cast<int>(n);
  const int stride = plain ? size : static_cast<int>(packed_row_stride(type, n) / 2);
  const float one = 1.0f, zero = 0.0f;
  const double time = bench.seconds(1, [&](std::int64_t) {
    check(cublasGemmEx(bench.cublas(), CUBLAS_OP_N, CUBLAS_OP_N, size, size, size, &one, matrix,
                       data, stride, matrix, data, stride, &zero, result.data(), CUDA_R_32F, size,
                       CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "a matrix product");
  });
  return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / time;
}

bool read_number(const char* text, unsigned& number) {
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 10);
  number = static_cast<unsigned>(value);
  return *text >= '0' && *text <= '9' && *end == '\0' && value <= 0xffffffffu;
}

bool parse(int argc, char** argv, Options& options) {
  options.seed = std::random_device{}();
  bool text = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    unsigned number = 0;
    if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--tiny") {
      options.tiny = true;
    } else if (argument == "--json") {
      options.json = true;
    } else if (argument == "--seed" || argument == "--device") {
      if (++i == argc || !read_number(argv[i], number)) return false;
      if (argument == "--seed")
        options.seed = number;
      else
        options.device = static_cast<int>(number);
    } else if (argument.starts_with("-") || text) {
      return false;
    } else {
      options.only = argument;
      text = true;
    }
  }
  return true;
}

int run(const Options& options) {
  Bench bench(options);
  bench.set_limits(measure_limits(bench));
  for (const Model& model : options.tiny ? kTiny : kModels) {
    bench_products(bench, model);
    bench_attention(bench, model);
    bench_elementwise(bench, model);
    bench_step(bench, model);
  }
  if (bench.all_agreed()) return 0;
  std::fprintf(stderr, "a kernel disagrees with its oracle (--seed %u repeats it)\n", options.seed);
  return 1;
}

}  // namespace

Limits measure_limits(Bench& bench) {
  Limits limits;
  limits.read = read_rate(bench);
  measure_copies(bench, limits);
  limits.f32 = product_rate(bench, InputType::kF32);
  limits.f16 = product_rate(bench, InputType::kF16);
  bench.attempt("cuBLAS bf16", [&] { limits.bf16 = product_rate(bench, InputType::kBF16); });
  return limits;
}

}  // namespace stagecoach::cuda_bench

int main(int argc, char** argv) {
  using namespace stagecoach::cuda_bench;
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: cuda_bench [--device N] [--quick] [--json] [--seed N] [--tiny] [TEXT]\n");
    return 2;
  }
  try {
    return run(options);
  } catch (const CardError& error) {
    std::fprintf(stderr, "cuda_bench: %s\n", error.what());
    return 4;
  }
}
