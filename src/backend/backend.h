// The device seam: CPU and CUDA meet here and nowhere else. Ops are asynchronous in principle (a
// CUDA backend queues them on its stream): results may be read after download() or synchronize().
//
// Pointers are the device's own; sizes are in elements unless they say bytes. Contracts of the
// mathematics stand in kernels/include/ops.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/tensor_view.h"
#include "kernels/include/ops.h"

namespace stagecoach {

class Backend;

// Passes when what was queued before it is done. A null EventPtr has passed.
class Event {
 public:
  virtual ~Event() = default;
  virtual void synchronize() = 0;        // returns when it has passed
  virtual std::int64_t passed_ns() = 0;  // when that was, by this host's clock; synchronises
};
using EventPtr = std::shared_ptr<Event>;

// Ops that were recorded, to be queued again all at once.
class Recording {
 public:
  virtual ~Recording() = default;
  // Queues them as they were recorded: the same arguments and addresses, with what device memory
  // holds by then, spans included. Marks among them are set anew. False: memory that the backend's
  // ops hold themselves has moved, and they have to be recorded anew.
  virtual bool replay() = 0;
};

// Device memory, owned. Aligned to 64 bytes at least, zeroed in the order of ops.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Backend* backend, std::byte* data, std::int64_t bytes)
      : backend_(backend), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  float* f32() const { return reinterpret_cast<float*>(data_); }
  std::int64_t bytes() const { return bytes_; }
  // The memory stays for as long as the process runs.
  void release() { data_ = nullptr; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(backend_, other.backend_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  Backend* backend_ = nullptr;
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;  // "cpu"
  virtual std::string isa()
      const = 0;  // "avx2": results are bit-identical between ranks of equal isa
  virtual int threads() const = 0;
  // Of a device: "GPU 0 (NVIDIA GeForce RTX 3090)", for messages and its limits.
  virtual std::string device_label() const { return {}; }

  virtual Buffer allocate(std::int64_t bytes) = 0;
  // What pin() has page-locked is read in the order of ops, and stays as it is until then; any
  // other memory is the caller's again when this returns.
  virtual void upload(std::byte* device, std::span<const std::byte> host) = 0;
  virtual void download(std::span<std::byte> host, const std::byte* device) = 0;  // synchronises
  virtual void copy(std::byte* to, std::span<const std::byte> from) = 0;  // both of the device
  virtual void synchronize() = 0;

  // Whether device memory is the host's: weights are then used where they were read, and what
  // follows is never needed.
  virtual bool is_host() const = 0;
  // Of the device, that this rank could use, with what its ops hold already
  // (backend/device_scratch.h: what its ops then take).
  virtual std::int64_t free_bytes() const = 0;
  virtual int sharers() const = 0;  // ranks of this host that compute on it
  // Makes the device the calling thread's, for a library that itself copies from and to its memory.
  virtual void use() = 0;
  // Page-locks host memory while the result lives: copies from it then go on beside the ops.
  virtual std::shared_ptr<void> pin(std::span<std::byte> host) = 0;
  // Queues a copy beside the ops, to begin once `after` has passed. `host` stays as it is until the
  // result has. May be called from a thread of its own.
  virtual EventPtr copy_ahead(std::byte* device, std::span<const std::byte> host,
                              const EventPtr& after) = 0;
  // Passes when the ops queued so far are done.
  virtual EventPtr mark() = 0;
  // Ops queued from now on begin once `event` has passed; the caller does not wait.
  virtual void wait_for(const EventPtr& event) = 0;

  // Spans that ops are about to name, of all layers that a batch passes: append_kv and attention
  // take parts of this array, which stays as it is until the next call.
  virtual void send_spans(std::span<const KvSpan> spans) = 0;

  // Whether ops can be recorded.
  virtual bool records() const { return false; }
  // Records what `ops` queues, without running it, on this thread. They must have been queued
  // before, with spans of an equal SpanShape, and be no transfers and no products of more than
  // kMostFewRows rows. Null: this device or its driver
  // refuses; from then on records() is false.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& /*ops*/) {
    return nullptr;
  }

  // out (n, table.cols) = rows `ids` of a table in any layout; accumulate: out += .
  // The table is device memory; ids are host memory and in range (the caller checked).
  virtual void gather_rows(const TensorView& table, std::span<const std::int32_t> ids, float* out,
                           bool accumulate) = 0;
  // Whether matmul multiplies such rows with such weights.
  virtual bool multiplies(InputType input, DType weights) const = 0;
  // Rows of x as matmul reads them; see PackInputArgs.
  virtual void pack_input(const PackInputArgs& args) = 0;
  // y = x · Wᵀ [+ bias] [+ y]; see MatmulArgs. Weights are what upload or copy_ahead has brought.
  virtual void matmul(const MatmulArgs& args) = 0;
  virtual void norm(const NormArgs& args) = 0;
  virtual void rotary(const RotaryArgs& args) = 0;
  virtual void append_kv(const AppendKvArgs& args) = 0;
  virtual void attention(const AttentionArgs& args) = 0;
  virtual void activation(const ActivationArgs& args) = 0;

  // Ops that follow each other in every block, as one where a device gains by that.
  // Products of the same rows x, none of which reads what another writes.
  virtual void matmuls(std::span<const MatmulArgs> products) {
    for (const MatmulArgs& product : products) matmul(product);
  }
  // What is packed is norm.y (rows, cols) = pack.x; whether it is to be in norm.y as well.
  enum class Unpacked : std::uint8_t { kKept, kNotRead };
  virtual void norm_and_pack(const NormArgs& norm, const PackInputArgs& pack, Unpacked) {
    this->norm(norm);
    pack_input(pack);
  }
  // What is packed is activation.y = pack.x, which holds nothing that could be read after.
  virtual void activation_and_pack(const ActivationArgs& activation, const PackInputArgs& pack) {
    this->activation(activation);
    pack_input(pack);
  }
  // Rotates queries in place, and keys (key.x = append.k) on their way into the cache: append.k
  // holds nothing that could be read after. Both have the same rows and angles.
  virtual void rotate_and_append(const RotaryArgs& query, const RotaryArgs& key,
                                 const AppendKvArgs& append) {
    rotary(query);
    rotary(key);
    append_kv(append);
  }

  // cos, sin (rows, half) for host-side `positions`; see rotary_table.
  virtual void rotary_table(std::span<const std::int64_t> positions,
                            std::span<const float> inv_freq, float* cos, float* sin) = 0;

 protected:
  friend class Buffer;
  virtual void free(std::byte* data, std::int64_t bytes) = 0;
};

inline Buffer::~Buffer() {
  if (data_ != nullptr) backend_->free(data_, bytes_);
}

}  // namespace stagecoach
