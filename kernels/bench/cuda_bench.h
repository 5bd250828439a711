// What the parts of cuda_bench share: the card's memory and limits, timing by events, and the line
// that a kernel gets.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/include/ops.h"

namespace stagecoach::cuda_bench {

using Floats = std::vector<float>;
using Bytes = std::vector<std::byte>;

// What the card or its driver refused; a kernel that is wrong is a line, and no exception.
struct CardError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct OutOfMemory : CardError {
  using CardError::CardError;
};
// A product that cuBLAS does not have for this card: bfloat16 below capability 8.0.
struct Unsupported : CardError {
  using CardError::CardError;
};
void check(cudaError_t status, const char* doing);
void check(cublasStatus_t status, const char* doing);

// Device memory.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::int64_t bytes);
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
  }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory() { cudaFree(data_); }

  std::byte* data() const { return data_; }
  float* f32() const { return reinterpret_cast<float*>(data_); }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// A model's widths. Prefill is `rows` tokens from position 0 on, decode one row at the end of
// `context` positions.
struct Model {
  const char* name;
  std::int64_t hidden, heads, head_dim, rotary_dim;
  std::int64_t rows, context;

  std::int64_t mlp() const { return 4 * hidden; }
};

struct Options {
  int device = 0;
  bool quick = false;
  bool tiny = false;  // shapes for simulated devices
  bool json = false;
  unsigned seed = 0;
  std::string only;  // lines whose name contains it
};

// Per second; 0: not measured.
struct Limits {
  double read = 0, to_device = 0, to_host = 0;  // bytes
  double f32 = 0, f16 = 0, bf16 = 0;            // operations
};

// Of one call. `peak`: operations a second that its arithmetic allows; 0: whatever it is, memory is
// the limit.
struct Work {
  double bytes = 0, flops = 0, peak = 0;
};

// A number of a row's sum of n products in float32, relative to the sum's typical size.
double sum_tolerance(std::int64_t n);

struct Error {
  double found, allowed;
};
inline constexpr Error kNotCompared{-1.0, 0.0};

class Bench {
 public:
  explicit Bench(const Options& options);
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;
  ~Bench();

  const Options& options() const { return options_; }
  const Limits& limits() const { return limits_; }
  void set_limits(const Limits& limits);
  cudaStream_t stream() const { return stream_; }
  cublasHandle_t cublas() const { return cublas_; }
  const cudaDeviceProp& card() const { return card_; }
  bool all_agreed() const { return agreed_; }

  // ---- Data
  Floats random(std::int64_t count);  // in [-1, 1)
  Memory on_device(std::span<const std::byte> host);
  Memory on_device(const Floats& host) { return on_device(std::as_bytes(std::span(host))); }
  // `copies` of it, one after the other.
  Memory copies_on_device(std::span<const std::byte> host, std::int64_t copies);
  // Filled with NaN (in every float type), so that what no kernel writes shows.
  Memory unwritten(std::int64_t bytes);
  void fill_with_nan(const Memory& memory);
  void copy(std::byte* to, const std::byte* from, std::int64_t bytes);
  void download(std::span<std::byte> to, const std::byte* from);
  Floats floats_of(const Memory& memory);
  void synchronize();

  // So many copies of data, used in turn, do not stay in L2 from one use to the next.
  std::int64_t copies_of(std::int64_t bytes) const;

  // ---- Lines

  bool wanted(const std::string& name) const;
  // Runs `line`, which reports; where the card has no memory for it, or cuBLAS no such product, a
  // line named `name` says so.
  void attempt(const std::string& name, const std::function<void()>& line);

  // Times queue(copy), which queues one call on the stream, over all copies in turn.
  using Queue = std::function<void(std::int64_t copy)>;
  void report(const std::string& name, const Work& work, const Error& error, std::int64_t copies,
              const Queue& queue);
  double seconds(std::int64_t copies, const Queue& queue);

 private:
  double round_seconds(std::int64_t copies, std::int64_t loops, const Queue& queue);

  Options options_;
  cudaDeviceProp card_{};
  cudaStream_t stream_ = nullptr;
  cublasHandle_t cublas_ = nullptr;
  Memory cublas_workspace_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  std::mt19937 generator_;
  Limits limits_;
  bool agreed_ = true;
};

// Largest |actual − expected(i)| relative to the root of the mean square of what was expected; NaN
// if one actual is.
double relative_error(std::span<const float> actual,
                      const std::function<float(std::size_t)>& expected);

// The parts.
Limits measure_limits(Bench& bench);
void bench_products(Bench& bench, const Model& model);
void bench_attention(Bench& bench, const Model& model);
void bench_elementwise(Bench& bench, const Model& model);
void bench_step(Bench& bench, const Model& model);

constexpr const char* name_of(DType type) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "q8", "q4"};
  return kNames[static_cast<int>(type)];
}
constexpr const char* name_of(InputType type) {
  constexpr const char* kNames[] = {"f32", "bf16", "int8", "f16"};
  return kNames[static_cast<int>(type)];
}
constexpr const char* name_of(KvType type) {
  constexpr const char* kNames[] = {"f32", "f16", "q8"};
  return kNames[static_cast<int>(type)];
}

}  // namespace stagecoach::cuda_bench
