// One GPU. Ops are queued on one stream; copies of weights go beside them on another, ordered by
// events alone. Every host thread that calls sets the device first, since CUDA keeps it per thread.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/cuda/argument_ring.h"
#include "backend/cuda/cuda_device.h"
#include "backend/cuda/cuda_handles.h"
#include "backend/cuda/graph_recorder.h"
#include "backend/cuda/locked_memory.h"
#include "backend/cuda/products.h"
#include "backend/cuda/span_tables.h"
#include "backend/cuda_module.h"
#include "backend/device_scratch.h"
#include "base/byte_size.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/module.h"
#include "base/version.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach {
namespace cuda {
namespace {

// Whether the clocks have to be compared again.
constexpr std::int64_t kOriginServesNs = 10'000'000'000;
// Of row ids, from the start on.
constexpr std::int64_t kIdBytes = kArgumentBytes - kSpanTableBytes;

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : device_(options),
        threads_(options.threads),
        alone_here_(options.ranks_here == 1),
        origin_(std::make_shared<ClockOrigin>(ops_)),
        arguments_(ops_),
        spans_(arguments_),
        products_(ops_, device_.capability()),
        locked_(device_, copies_),
        recorder_(ops_) {
    ids_.get(kIdBytes);
  }
  ~CudaBackend() override {
    if (device_.try_use()) cudaDeviceSynchronize();
  }

  std::string name() const override { return "cuda"; }
  std::string isa() const override { return device_.architecture(); }
  int threads() const override { return threads_; }
  std::string device_label() const override { return device_.label(); }

  Buffer allocate(std::int64_t bytes) override;
  void upload(std::byte* device, std::span<const std::byte> host) override;
  void download(std::span<std::byte> host, const std::byte* device) override;
  void copy(std::byte* to, std::span<const std::byte> from) override;
  void synchronize() override {
    device_.use();
    wait_for_ops();
    renew_origin(ops_);
  }

  bool is_host() const override { return false; }
  std::int64_t free_bytes() const override {
    return device_.free_bytes() / device_.sharers() + kCublasBytes + kArgumentBytes;
  }
  int sharers() const override { return device_.sharers(); }
  void use() override { device_.use(); }
  std::shared_ptr<void> pin(std::span<std::byte> host) override {
    device_.use();
    return locked_.lock(host);
  }
  EventPtr copy_ahead(std::byte* device, std::span<const std::byte> host,
                      const EventPtr& after) override;
  EventPtr mark() override {
    device_.use();
    if (recorder_.recording()) return recorder_.mark();
    return std::make_shared<CudaEvent>(origin(), ops_);
  }
  void wait_for(const EventPtr& event) override {
    if (event == nullptr) return;
    device_.use();
    wait(ops_, event);
    products_.wait_for(static_cast<const CudaEvent&>(*event).handle());
  }
  void send_spans(std::span<const KvSpan> spans) override {
    device_.use();
    spans_.send(spans);
  }

  bool records() const override { return recorder_.records(); }
  std::unique_ptr<Recording> record(const std::function<void()>& ops) override {
    device_.use();
    return recorder_.record(
        ops, {.addresses = [this] { return addresses(); }, .origin = [this] { return origin(); }});
  }

  void gather_rows(const TensorView& table, std::span<const std::int32_t> ids, float* out,
                   bool accumulate) override;
  bool multiplies(InputType input, DType weights) const override {
    return products_.multiplies(input, weights);
  }
  void pack_input(const PackInputArgs& args) override {
    run("packing inputs", [&] { cuda::pack_input(args, ops_); });
  }
  void matmul(const MatmulArgs& args) override { matmuls({&args, 1}); }
  void matmuls(std::span<const MatmulArgs> products) override {
    device_.use();
    // Of many rows they would be on two streams.
    STAGECOACH_CHECK(products.front().rows <= kMostFewRows || !recorder_.recording());
    products_.multiply(products);
  }
  void norm(const NormArgs& args) override {
    run("a norm", [&] { cuda::norm(args, ops_); });
  }
  void rotary(const RotaryArgs& args) override {
    run("rotary embedding", [&] { cuda::rotary(args, ops_); });
  }
  void append_kv(const AppendKvArgs& args) override {
    run("appending keys and values",
        [&] { cuda::append_kv(args, spans_.part(args.spans, args.num_spans), ops_); });
  }
  void attention(const AttentionArgs& args) override;
  void activation(const ActivationArgs& args) override {
    run("an activation", [&] { cuda::activation(args, ops_); });
  }
  void norm_and_pack(const NormArgs& norm, const PackInputArgs& pack, Unpacked unpacked) override {
    NormArgs args = norm;
    if (unpacked == Unpacked::kNotRead) args.y = nullptr;
    run("a norm", [&] { cuda::norm_and_pack(args, pack, ops_); });
  }
  void activation_and_pack(const ActivationArgs& activation, const PackInputArgs& pack) override {
    run("an activation", [&] { cuda::activation_and_pack(activation, pack, ops_); });
  }
  void rotate_and_append(const RotaryArgs& query, const RotaryArgs& key,
                         const AppendKvArgs& append) override {
    run("appending keys and values", [&] {
      cuda::rotate_and_append(query, key, append, spans_.part(append.spans, append.num_spans),
                              ops_);
    });
  }
  void rotary_table(std::span<const std::int64_t> positions, std::span<const float> inv_freq,
                    float* cos, float* sin) override;

 protected:
  void free(std::byte* data, std::int64_t) override {
    // No error can be told to whoever destroys a buffer; the next call meets it.
    if (device_.try_use()) cudaFree(data);
  }

 private:
  template <typename Queue>
  void run(const char* what, const Queue& queue) {
    device_.use();
    queue();
    check_launch(what);
  }
  void wait(cudaStream_t stream, const EventPtr& event) {
    if (event == nullptr) return;
    device_.use();
    check(cudaStreamWaitEvent(stream, static_cast<const CudaEvent&>(*event).handle(), 0),
          "ordering streams");
  }
  // Spinning is the sooner way to the next token, and costs a processor: it is for whoever has no
  // other use for one. Where weights pass through the device threads read, check and copy them, and
  // other ranks of the host compute: then the wait is a sleep.
  void wait_for_ops() {
    if (alone_here_ && !copies_ahead_)
      return check(cudaStreamSynchronize(ops_), "waiting for the device");
    done_.record(ops_);
    done_.synchronize();
  }
  // Where it serves no longer. Waits for what `stream` has queued.
  void renew_origin(cudaStream_t stream) {
    if (now_ns() - origin()->ns() <= kOriginServesNs) return;
    auto fresh = std::make_shared<ClockOrigin>(stream);
    const std::lock_guard lock(origin_mutex_);
    origin_ = std::move(fresh);
  }
  ClockOriginPtr origin() {
    const std::lock_guard lock(origin_mutex_);
    return origin_;
  }

  // Of memory that recorded ops use here, and that moves when it grows.
  GraphRecorder::Addresses addresses() const { return {spans_.memory(), attention_.data()}; }

  const Device device_;
  const int threads_;
  const bool alone_here_;  // no other rank is on this host
  std::atomic<bool> copies_ahead_{false};
  Stream ops_;
  Stream copies_;
  Order done_;
  std::mutex origin_mutex_;  // the copying thread marks, too
  ClockOriginPtr origin_;
  ArgumentRing arguments_;
  SpanTables spans_;
  Scratch ids_;
  Products products_;
  Scratch attention_;
  LockedMemory locked_;
  GraphRecorder recorder_;
};

Buffer CudaBackend::allocate(std::int64_t bytes) {
  if (bytes == 0) return {};
  device_.use();
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<std::size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw resource_error(fmt::format("{} has no {} of memory left: {} are free", device_.label(),
                                     format_bytes(bytes), format_bytes(device_.free_bytes())),
                         "a smaller --device-memory leaves room for what other programs take");
  }
  check(status, "allocating device memory");
  Buffer buffer(this, static_cast<std::byte*>(data), bytes);
  products_.ops_bring_weights();
  check(cudaMemsetAsync(data, 0, static_cast<std::size_t>(bytes), ops_), "clearing memory");
  return buffer;
}

void CudaBackend::upload(std::byte* device, std::span<const std::byte> host) {
  if (host.empty()) return;
  device_.use();
  products_.ops_bring_weights();
  const std::byte* const locked = locked_.find(host);
  if (locked == nullptr) return arguments_.send_copy(host, device);
  run("fetching from the host",
      [&] { fetch(device, locked, static_cast<std::int64_t>(host.size()), ops_); });
}

void CudaBackend::download(std::span<std::byte> host, const std::byte* device) {
  device_.use();
  if (!host.empty())
    check(cudaMemcpyAsync(host.data(), device, host.size(), cudaMemcpyDeviceToHost, ops_),
          "copying from the device");
  synchronize();
}

void CudaBackend::copy(std::byte* to, std::span<const std::byte> from) {
  if (from.empty()) return;
  run("copying within the device",
      [&] { fetch(to, from.data(), static_cast<std::int64_t>(from.size()), ops_); });
}

EventPtr CudaBackend::copy_ahead(std::byte* device, std::span<const std::byte> host,
                                 const EventPtr& after) {
  copies_ahead_ = true;
  device_.use();
  // In a pass of many micro-batches nobody waits for ops in a long time: the bus has a gap instead,
  // between what was queued before and this copy.
  renew_origin(copies_);
  wait(copies_, after);
  check(cudaMemcpyAsync(device, host.data(), host.size(), cudaMemcpyHostToDevice, copies_),
        "copying weights to the device");
  return std::make_shared<CudaEvent>(origin(), copies_);
}

void CudaBackend::gather_rows(const TensorView& table, std::span<const std::int32_t> ids,
                              float* out, bool accumulate) {
  if (ids.empty()) return;
  run("gathering rows", [&] {
    const auto bytes = static_cast<std::int64_t>(ids.size_bytes());
    std::byte* const host_ids = arguments_.begin(bytes);
    std::memcpy(host_ids, ids.data(), ids.size_bytes());
    auto* const sent = ids_.of<std::byte>(ArgumentRing::aligned(bytes));
    arguments_.send(host_ids, bytes, sent);
    cuda::gather_rows({.table = table.data,
                       .type = table.type,
                       .layout = table.layout,
                       .cols = table.cols,
                       .ids = reinterpret_cast<const std::int32_t*>(sent),
                       .count = static_cast<std::int64_t>(ids.size()),
                       .out = out,
                       .accumulate = accumulate},
                      ops_);
  });
}

void CudaBackend::attention(const AttentionArgs& args) {
  static_assert(kLargestDeviceHead == kLargestHeadDim);
  STAGECOACH_CHECK(args.head_dim <= kLargestHeadDim);
  run("attention", [&] {
    const DeviceSpans sent = spans_.part(args.spans, args.num_spans);
    attention_prefill(args, sent, ops_);
    float* const scratch = attention_.of<float>(decode_scratch_floats(args, sent));
    attention_decode(args, sent, scratch, ops_);
  });
}

void CudaBackend::rotary_table(std::span<const std::int64_t> positions,
                               std::span<const float> inv_freq, float* cos, float* sin) {
  // On the host, whose sines are exact for every position.
  std::vector<float> host_cos(positions.size() * inv_freq.size()), host_sin(host_cos.size());
  stagecoach::rotary_table(positions.data(), static_cast<std::int64_t>(positions.size()),
                           inv_freq.data(), static_cast<std::int64_t>(inv_freq.size()),
                           host_cos.data(), host_sin.data());
  upload(reinterpret_cast<std::byte*>(cos), std::as_bytes(std::span(host_cos)));
  upload(reinterpret_cast<std::byte*>(sin), std::as_bytes(std::span(host_sin)));
}

}  // namespace
}  // namespace cuda
}  // namespace stagecoach

stagecoach::Backend* stagecoach_open_cuda_backend_v1(const stagecoach::CudaOptions& options) {
  stagecoach::check_same_build("CUDA", STAGECOACH_BUILD, options.build);
  return new stagecoach::cuda::CudaBackend(options);
}
