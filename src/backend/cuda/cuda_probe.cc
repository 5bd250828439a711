// What a GPU can do at most: reads of its memory, copies over the bus, products by cuBLAS. Of each
// the best of several rounds, on data that grows until a round is long enough to be measured.
#include <cublas_v2.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_handles.h"
#include "backend/cuda/products.h"
#include "backend/cuda_module.h"
#include "backend/device_scratch.h"
#include "base/error.h"
#include "base/module.h"
#include "base/version.h"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/include/dtype.h"

namespace stagecoach::cuda {
namespace {

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
// Far more than any cache, and small beside what is free.
constexpr std::int64_t kMostRead = 1024 * kMiB, kMostCopied = 256 * kMiB;
constexpr std::int64_t kShareOfFree = 4;  // the fourth part
constexpr unsigned kBlocksPerProcessor = 8;
constexpr std::int64_t kSmallestProduct = 256, kLargestProduct = 8192;  // rows and columns
constexpr std::int64_t kRandomValues = std::int64_t{1} << 20;

class PinnedMemory {
 public:
  explicit PinnedMemory(std::int64_t bytes) {
    check(cudaHostAlloc(&data_, static_cast<std::size_t>(bytes), cudaHostAllocDefault),
          "allocating page-locked memory");
    std::fill_n(static_cast<std::byte*>(data_), bytes, std::byte{1});
  }
  ~PinnedMemory() { cudaFreeHost(data_); }
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  std::byte* data() const { return static_cast<std::byte*>(data_); }

 private:
  void* data_ = nullptr;
};

class GpuProbe {
 public:
  GpuProbe(const Device& device, const CudaProbeOptions& options)
      : device_(device), options_(options), largest_(device.free_bytes() / kShareOfFree) {
    check(cublasCreate(&cublas_), "starting cuBLAS");
    check(cublasSetStream(cublas_, stream_), "starting cuBLAS");
    check(cublasSetWorkspace(cublas_, workspace_.get(kCublasBytes),
                             static_cast<std::size_t>(kCublasBytes)),
          "starting cuBLAS");
  }
  ~GpuProbe() {
    cudaStreamSynchronize(stream_);
    cublasDestroy(cublas_);
  }
  GpuProbe(const GpuProbe&) = delete;
  GpuProbe& operator=(const GpuProbe&) = delete;

  DeviceLimit measure() {
    DeviceLimit limit;
    limit.label = device_.label();
    // Products first: they take longest, and bring the card to the clock that work has.
    limit.f16 = product_rate(CUDA_R_16F, 2);
    if (device_.capability() >= kLowestWithBF16) limit.bf16 = product_rate(CUDA_R_16BF, 2);
    limit.f32 = product_rate(CUDA_R_32F, 4);
    limit.memory = read_rate();
    measure_copies(limit);
    return limit;
  }

 private:
  using Queue = std::function<void()>;

  // Of `loops` runs one after the other.
  double round_seconds(std::int64_t loops, const Queue& queue) {
    if (options_.interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
    check(cudaEventRecord(begin_, stream_), "recording an event");
    for (std::int64_t i = 0; i < loops; ++i) queue();
    check(cudaEventRecord(end_, stream_), "recording an event");
    check_launch("a measurement");
    check(cudaEventSynchronize(end_), "waiting for the device");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin_, end_), "timing");
    constexpr double kResolution = 0.5e-6;  // of events
    return std::max(static_cast<double>(milliseconds) * 1e-3, kResolution);
  }

  // Once queued, whatever that loads with it.
  double once(const Queue& queue) {
    round_seconds(1, queue);
    return round_seconds(1, queue);
  }

  double best_seconds(const Queue& queue) {
    constexpr double kRound = 5e-3;  // launches are queued ahead of the card
    constexpr int kFewestRounds = 3, kMostRounds = 60;
    const double budget = options_.quick ? 0.03 : 0.4;
    const auto loops = std::max<std::int64_t>(1, static_cast<std::int64_t>(kRound / once(queue)));
    double best = round_seconds(loops, queue), spent = best;
    for (int round = 1; round < kFewestRounds || (round < kMostRounds && spent < budget); ++round) {
      const double seconds = round_seconds(loops, queue);
      best = std::min(best, seconds);
      spent += seconds;
    }
    return best / static_cast<double>(loops);
  }

  // The size to measure with: grows until a run takes so many seconds, or to the largest.
  static std::int64_t size_for(double seconds, std::int64_t smallest, std::int64_t largest,
                               std::int64_t growth,
                               const std::function<double(std::int64_t)>& run) {
    std::int64_t size = smallest;
    while (size * growth <= largest && run(size) < seconds) size *= growth;
    return size;
  }

  double read_rate() {
    const std::int64_t largest = std::clamp(largest_ / kMiB * kMiB, kMiB, kMostRead);
    const auto blocks = static_cast<unsigned>(device_.processors()) * kBlocksPerProcessor;
    Scratch memory, sums;
    auto* const data = memory.of<std::byte>(largest);
    check(cudaMemsetAsync(data, 0x5a, static_cast<std::size_t>(largest), stream_),
          "filling memory");
    auto* const found = sums.of<std::uint32_t>(std::int64_t{blocks} * kReadThreads);
    const auto read = [&](std::int64_t bytes) {
      return [=, this] { read_memory(data, bytes, blocks, found, stream_); };
    };
    constexpr double kLong = 2e-3;
    const std::int64_t bytes =
        size_for(kLong, kMiB, largest, 4, [&](std::int64_t size) { return once(read(size)); });
    const double rate = static_cast<double>(bytes) / best_seconds(read(bytes));
    synchronize();  // before its memory goes
    return rate;
  }

  void measure_copies(DeviceLimit& limit) {
    const std::int64_t largest =
        std::clamp(largest_ / kMiB * kMiB, kMiB, options_.quick ? 64 * kMiB : kMostCopied);
    const PinnedMemory host(largest);
    Scratch memory;
    auto* const device = memory.of<std::byte>(largest);
    const auto rate = [&](std::byte* to, const std::byte* from, cudaMemcpyKind kind) {
      const auto copy = [=, this](std::int64_t bytes) {
        return [=, this] {
          check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), kind, stream_),
                "copying");
        };
      };
      constexpr double kLong = 10e-3;
      const std::int64_t bytes =
          size_for(kLong, kMiB, largest, 4, [&](std::int64_t size) { return once(copy(size)); });
      return static_cast<double>(bytes) / best_seconds(copy(bytes));
    };
    limit.to_device = rate(device, host.data(), cudaMemcpyHostToDevice);
    limit.from_device = rate(host.data(), device, cudaMemcpyDeviceToHost);
    synchronize();
  }

  // Random numbers, as long as they repeat: of zeros a card multiplies faster than of weights.
  void fill_randomly(std::byte* to, std::int64_t values, cudaDataType_t type) {
    std::mt19937 generator(1);
    std::vector<std::uint16_t> halves;
    std::vector<float> floats;
    for (std::int64_t i = 0; i < kRandomValues; ++i) {
      const float value =
          static_cast<float>(static_cast<std::int32_t>(generator() >> 8) - (1 << 23)) * 0x1p-23f;
      if (type == CUDA_R_32F)
        floats.push_back(value);
      else
        halves.push_back(type == CUDA_R_16F ? f32_to_f16(value) : f32_to_bf16(value));
    }
    const auto bytes =
        type == CUDA_R_32F ? std::as_bytes(std::span(floats)) : std::as_bytes(std::span(halves));
    const std::int64_t all = values * static_cast<std::int64_t>(bytes.size()) / kRandomValues;
    for (std::int64_t at = 0; at < all; at += static_cast<std::int64_t>(bytes.size()))
      check(cudaMemcpyAsync(to + at, bytes.data(),
                            std::min(bytes.size(), static_cast<std::size_t>(all - at)),
                            cudaMemcpyHostToDevice, stream_),
            "copying to the device");
    synchronize();
  }

  // Operations a second on square matrices, a multiply-add being two.
  double product_rate(cudaDataType_t type, std::int64_t element_bytes) {
    std::int64_t largest = kLargestProduct;
    while (largest > kSmallestProduct && largest * largest * (2 * element_bytes + 4) > largest_)
      largest /= 2;
    Scratch a_memory, b_memory, c_memory;
    auto* const a = a_memory.of<std::byte>(largest * largest * element_bytes);
    auto* const b = b_memory.of<std::byte>(largest * largest * element_bytes);
    auto* const c = c_memory.of<float>(largest * largest);
    fill_randomly(a, largest * largest, type);
    fill_randomly(b, largest * largest, type);
    const auto product = [&](std::int64_t size) {
      return [=, this, n = static_cast<int>(size)] {
        const float one = 1.0f, zero = 0.0f;
        check(cublasGemmEx(cublas_, CUBLAS_OP_N, CUBLAS_OP_N, n, n, n, &one, a, type, n, b, type, n,
                           &zero, c, CUDA_R_32F, n, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
              "a matrix product");
      };
    };
    constexpr double kLong = 10e-3;
    const std::int64_t size = size_for(kLong, kSmallestProduct, largest, 2,
                                       [&](std::int64_t n) { return once(product(n)); });
    const auto n = static_cast<double>(size);
    const double rate = 2.0 * n * n * n / best_seconds(product(size));
    synchronize();
    return rate;
  }

  void synchronize() { check(cudaStreamSynchronize(stream_), "waiting for the device"); }

  const Device& device_;
  const CudaProbeOptions& options_;
  const std::int64_t largest_;
  Stream stream_;
  const OwnedEvent begin_{cudaEventDefault}, end_{cudaEventDefault};
  Scratch workspace_;  // cuBLAS's own: freed after it
  cublasHandle_t cublas_ = nullptr;
};

}  // namespace
}  // namespace stagecoach::cuda

stagecoach::CudaProbe* stagecoach_probe_cuda_v1(const stagecoach::CudaProbeOptions& options) {
  using namespace stagecoach::cuda;
  stagecoach::check_same_build("CUDA", STAGECOACH_BUILD, options.build);
  auto probe = std::make_unique<stagecoach::CudaProbe>();
  const int count = Device::count();
  for (int ordinal = 0; ordinal < count; ++ordinal) {
    try {
      const Device device({.device = ordinal});
      probe->devices.push_back(GpuProbe(device, options).measure());
    } catch (const stagecoach::Error& error) {
      if (error.kind() != stagecoach::ErrorKind::kResources) throw;
      probe->problems.push_back(fmt::format("GPU {} is not measured: {}", ordinal, error.what()));
    }
  }
  return probe.release();
}
