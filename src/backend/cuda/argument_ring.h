// What is on its way from the host's memory to kernels (spans, row ids, rows): written into
// page-locked memory, fetched by a kernel on the stream of those that read it. Nobody waits, unless
// a whole ring of it is still on its way.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/cuda_handles.h"

namespace stagecoach::cuda {

class ArgumentRing {
 public:
  explicit ArgumentRing(cudaStream_t stream);
  ~ArgumentRing();
  ArgumentRing(const ArgumentRing&) = delete;
  ArgumentRing& operator=(const ArgumentRing&) = delete;

  // Bytes in which tables come: `device` memory is as long as that.
  static constexpr std::int64_t kAlignment = 256;
  static constexpr std::int64_t aligned(std::int64_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  // Memory for a table of so many bytes, to be written and then sent: kernels that are queued after
  // send() read it at `device`, those before what was there.
  std::byte* begin(std::int64_t bytes);
  void send(const std::byte* table, std::int64_t bytes, std::byte* device);
  // Of any memory, and as much as there is: it is the caller's again when this returns.
  void send_copy(std::span<const std::byte> host, std::byte* device);

 private:
  // A segment is written again once what was copied from it is done.
  static constexpr int kSegments = 4;
  void grow(std::int64_t segment_bytes);
  void free_memory();

  cudaStream_t stream_;
  std::byte* host_ = nullptr;
  std::int64_t segment_bytes_ = 0;
  int segment_ = 0;
  std::int64_t used_ = 0;  // of the segment
  std::array<EventPtr, kSegments> done_;
};

}  // namespace stagecoach::cuda
