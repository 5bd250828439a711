// Small tables on their way to kernels (spans, row ids): written into page-locked memory, fetched
// by a kernel on the stream of those that read them. Nobody waits, unless a whole ring of tables is
// still unread.
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

  // A table of so many bytes: to be written at `host`, then sent; kernels that are queued after
  // send() read it at `device`, for as long as the next kSegments - 1 segments are being filled.
  struct Table {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    std::int64_t bytes = 0;
  };
  Table begin(std::int64_t bytes);
  void send(const Table& table);

 private:
  // A segment is written again once what was copied from it, and read, is done.
  static constexpr int kSegments = 4;
  void grow(std::int64_t segment_bytes);
  void free_memory();

  cudaStream_t stream_;
  std::byte *host_ = nullptr, *device_ = nullptr;
  std::int64_t segment_bytes_ = 0;
  int segment_ = 0;
  std::int64_t used_ = 0;  // of the segment
  std::array<EventPtr, kSegments> done_;
};

}  // namespace stagecoach::cuda
