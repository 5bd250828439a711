// The card: its memory, its clock, and how a line about a kernel is printed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "kernels/bench/cuda_bench.h"

namespace stagecoach::cuda_bench {
namespace {

constexpr std::int64_t kMostCopies = 64;
constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;  // what cuBLAS wants on Hopper

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  const std::string message = std::string(doing) + " failed: " + cudaGetErrorString(status) + " (" +
                              cudaGetErrorName(status) + ")";
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(message);
  throw CardError(message);
}

void check(cublasStatus_t status, const char* doing) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string message = std::string(doing) + " failed: " + cublasGetStatusString(status);
  if (status == CUBLAS_STATUS_ALLOC_FAILED) throw OutOfMemory(message);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_ARCH_MISMATCH)
    throw Unsupported(message);
  throw CardError(message);
}

double sum_tolerance(std::int64_t n) {
  return 64 * 0x1p-24 * std::sqrt(static_cast<double>(n));
}

double relative_error(std::span<const float> actual,
                      const std::function<float(std::size_t)>& expected) {
  double worst = 0, squares = 0;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    const auto should = static_cast<double>(expected(i));
    const double difference = std::abs(static_cast<double>(actual[i]) - should);
    if (std::isnan(difference)) return difference;
    worst = std::max(worst, difference);
    squares += should * should;
  }
  const double size = std::sqrt(squares / static_cast<double>(actual.size()));
  return size > 0 ? worst / size : worst;
}

Memory::Memory(std::int64_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1))),
        "allocating device memory");
  data_ = static_cast<std::byte*>(data);
}

Bench::Bench(const Options& options) : options_(options), generator_(options.seed) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) check(status, "looking for a GPU");
  if (options.device < 0 || options.device >= count)
    throw CardError("--device " + std::to_string(options.device) + ": this PC has " +
                    std::to_string(count) + " of them, numbered from 0");
  check(cudaSetDevice(options.device), "choosing the GPU");
  check(cudaGetDeviceProperties(&card_, options.device), "asking for the GPU's properties");
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream");
  check(cudaEventCreateWithFlags(&begin_, cudaEventDefault), "creating an event");
  check(cudaEventCreateWithFlags(&end_, cudaEventDefault), "creating an event");
  // As the module does it: a workspace of its own, or cuBLAS allocates one in the middle of a call.
  cublas_workspace_ = Memory(kWorkspaceBytes);
  check(cublasCreate(&cublas_), "starting cuBLAS");
  check(cublasSetStream(cublas_, stream_), "starting cuBLAS");
  check(cublasSetWorkspace(cublas_, cublas_workspace_.data(), kWorkspaceBytes), "starting cuBLAS");
}

Bench::~Bench() {
  cudaStreamSynchronize(stream_);
  cublasDestroy(cublas_);
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
  cudaStreamDestroy(stream_);
}

void Bench::synchronize() {
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
}

// ---- Data

Floats Bench::random(std::int64_t count) {
  // 24 bits of each draw: std's distributions take longer than some kernels' oracles.
  Floats values(static_cast<std::size_t>(count));
  for (float& value : values)
    value = static_cast<float>(static_cast<std::int32_t>(generator_() >> 8) - (1 << 23)) * 0x1p-23f;
  return values;
}

Memory Bench::on_device(std::span<const std::byte> host) {
  return copies_on_device(host, 1);
}

Memory Bench::copies_on_device(std::span<const std::byte> host, std::int64_t copies) {
  const auto bytes = static_cast<std::int64_t>(host.size());
  Memory memory(bytes * copies);
  check(cudaMemcpyAsync(memory.data(), host.data(), host.size(), cudaMemcpyHostToDevice, stream_),
        "copying to the GPU");
  synchronize();  // `host` may be gone, or another's, when this has returned
  for (std::int64_t i = 1; i < copies; ++i) copy(memory.data() + i * bytes, memory.data(), bytes);
  return memory;
}

Memory Bench::unwritten(std::int64_t bytes) {
  Memory memory(bytes);
  fill_with_nan(memory);
  return memory;
}

void Bench::fill_with_nan(const Memory& memory) {
  check(cudaMemsetAsync(memory.data(), 0xff, static_cast<std::size_t>(memory.bytes()), stream_),
        "filling memory");
}

void Bench::copy(std::byte* to, const std::byte* from, std::int64_t bytes) {
  check(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
      "copying on the GPU");
}

void Bench::download(std::span<std::byte> to, const std::byte* from) {
  check(cudaMemcpyAsync(to.data(), from, to.size(), cudaMemcpyDeviceToHost, stream_),
        "copying from the GPU");
  synchronize();
}

Floats Bench::floats_of(const Memory& memory) {
  Floats values(static_cast<std::size_t>(memory.bytes()) / sizeof(float));
  download(std::as_writable_bytes(std::span(values)), memory.data());
  return values;
}

std::int64_t Bench::copies_of(std::int64_t bytes) const {
  const std::int64_t wanted = 3 * static_cast<std::int64_t>(card_.l2CacheSize) / bytes + 1;
  return options_.tiny ? 2 : std::clamp<std::int64_t>(wanted, 1, kMostCopies);
}

// ---- Timing

double Bench::round_seconds(std::int64_t copies, std::int64_t loops, const Queue& queue) {
  check(cudaEventRecord(begin_, stream_), "recording an event");
  for (std::int64_t i = 0; i < loops; ++i)
    for (std::int64_t c = 0; c < copies; ++c) queue(c);
  check(cudaEventRecord(end_, stream_), "recording an event");
  check(cudaGetLastError(), "starting a kernel");
  check(cudaEventSynchronize(end_), "waiting for the GPU");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin_, end_), "timing");
  return static_cast<double>(milliseconds) * 1e-3;
}

// A round lasts long enough for the event's clock, and for launches to be queued ahead of the card.
double Bench::seconds(std::int64_t copies, const Queue& queue) {
  constexpr double kRound = 1e-3;
  const double budget = options_.quick ? 0.05 : 0.15;
  const double most_rounds = options_.tiny ? 1 : 100, fewest_rounds = options_.tiny ? 1 : 5;
  round_seconds(copies, 1, queue);  // loads the kernel
  const double once = std::max(round_seconds(copies, 1, queue), 1e-6);
  const auto loops =
      options_.tiny ? 1 : std::max<std::int64_t>(1, static_cast<std::int64_t>(kRound / once));
  const double wanted = budget / (once * static_cast<double>(loops));
  std::vector<double> rounds(
      static_cast<std::size_t>(std::clamp(wanted, fewest_rounds, most_rounds)));
  for (double& round : rounds) round = round_seconds(copies, loops, queue);
  return median(rounds) / static_cast<double>(copies * loops);
}

// ---- Lines

bool Bench::wanted(const std::string& name) const {
  return name.find(options_.only) != std::string::npos;
}

void Bench::attempt(const std::string& name, const std::function<void()>& line) {
  const char* why = nullptr;
  try {
    line();
    return;
  } catch (const OutOfMemory&) {
    why = "the card has no memory left for it";
  } catch (const Unsupported&) {
    why = "cuBLAS does not have it for this card";
  }
  if (options_.json)
    std::printf("{\"kernel\": \"%s\", \"skipped\": \"%s\"}\n", name.c_str(), why);
  else
    std::printf("%-54s %s\n", name.c_str(), why);
}

void Bench::set_limits(const Limits& limits) {
  limits_ = limits;
  const double memory = static_cast<double>(card_.totalGlobalMem);
  if (options_.json) {
    std::printf(
        "{\"card\": \"%s\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, \"memory_gb\": "
        "%.1f, \"l2_mb\": %.1f, \"seed\": %u, \"read_gb_per_s\": %.1f, \"to_device_gb_per_s\": "
        "%.2f, \"to_host_gb_per_s\": %.2f, \"f32_gflop_per_s\": %.0f, \"f16_gflop_per_s\": %.0f, "
        "\"bf16_gflop_per_s\": %.0f}\n",
        card_.name, card_.major, card_.minor, card_.multiProcessorCount, memory * 1e-9,
        card_.l2CacheSize * 1e-6, options_.seed, limits.read * 1e-9, limits.to_device * 1e-9,
        limits.to_host * 1e-9, limits.f32 * 1e-9, limits.f16 * 1e-9, limits.bf16 * 1e-9);
  } else {
    std::printf(
        "%s, capability %d.%d, %d multiprocessors, %.1f GB, L2 %.1f MB; --seed %u\n"
        "reads %.1f GB/s; page-locked copies: to the card %.1f GB/s, from it %.1f GB/s\n"
        "cuBLAS: f32 %.0f, f16 %.0f, bf16 %.0f GFLOP/s\n\n",
        card_.name, card_.major, card_.minor, card_.multiProcessorCount, memory * 1e-9,
        card_.l2CacheSize * 1e-6, options_.seed, limits.read * 1e-9, limits.to_device * 1e-9,
        limits.to_host * 1e-9, limits.f32 * 1e-9, limits.f16 * 1e-9, limits.bf16 * 1e-9);
    std::printf("%-54s %11s %9s %10s %9s %6s %9s\n", "kernel", "us", "GB/s", "GFLOP/s", "of limit",
                "", "error");
  }
  std::fflush(stdout);
}

void Bench::report(const std::string& name, const Work& work, const Error& error,
                   std::int64_t copies, const Queue& queue) {
  const double time = seconds(copies, queue);
  const double by_memory = limits_.read > 0 ? work.bytes / limits_.read : 0;
  const double by_arithmetic = work.peak > 0 ? work.flops / work.peak : 0;
  const bool memory_bound = by_memory >= by_arithmetic;
  const double share = std::max(by_memory, by_arithmetic) / time;
  const bool compared = error.allowed > 0 || error.found >= 0 || std::isnan(error.found);
  const bool agrees = !compared || error.found <= error.allowed;
  if (!agrees) agreed_ = false;
  const char* const limit = memory_bound ? "memory" : "arith.";
  if (options_.json) {
    char found[32] = "\"NaN\"";  // JSON has no such number
    if (std::isfinite(error.found)) std::snprintf(found, sizeof found, "%.3e", error.found);
    std::printf(
        "{\"kernel\": \"%s\", \"us\": %.3f, \"gb_per_s\": %.2f, \"gflop_per_s\": %.1f, "
        "\"share_of_limit\": %.4f, \"limit\": \"%s\", \"error\": %s, \"allowed\": %.3e, "
        "\"agrees\": %s}\n",
        name.c_str(), time * 1e6, work.bytes / time * 1e-9, work.flops / time * 1e-9, share,
        memory_bound ? "memory" : "arithmetic", compared ? found : "null", error.allowed,
        agrees ? "true" : "false");
  } else {
    std::printf("%-54s %11.2f %9.1f %10.1f %8.0f%% %6s ", name.c_str(), time * 1e6,
                work.bytes / time * 1e-9, work.flops / time * 1e-9, 100 * share, limit);
    if (compared)
      std::printf("%9.1e%s\n", error.found, agrees ? "" : "  WRONG");
    else
      std::printf("%9s\n", "-");
  }
  std::fflush(stdout);
}

}  // namespace stagecoach::cuda_bench
