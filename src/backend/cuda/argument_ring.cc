#include "backend/cuda/argument_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>

#include "backend/device_scratch.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda {
ArgumentRing::ArgumentRing(cudaStream_t stream) : stream_(stream) {
  grow(kSpanTableBytes / kSegments);
}

ArgumentRing::~ArgumentRing() {
  cudaStreamSynchronize(stream_);
  free_memory();
}

void ArgumentRing::free_memory() {
  cudaFreeHost(host_);
  host_ = nullptr;
}

void ArgumentRing::grow(std::int64_t segment_bytes) {
  check(cudaStreamSynchronize(stream_), "waiting for the device");
  free_memory();
  done_ = {};
  const auto bytes = static_cast<std::size_t>(kSegments * segment_bytes);
  void* memory = nullptr;
  check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "allocating page-locked memory");
  host_ = static_cast<std::byte*>(memory);
  segment_bytes_ = segment_bytes;
  segment_ = 0;
  used_ = 0;
}

std::byte* ArgumentRing::begin(std::int64_t bytes) {
  bytes = aligned(bytes);
  // As the host's budget counts segments.
  if (bytes > segment_bytes_)
    grow(static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(bytes))));
  if (used_ + bytes > segment_bytes_) {
    done_[static_cast<std::size_t>(segment_)] = std::make_shared<CudaEvent>(nullptr, stream_);
    segment_ = (segment_ + 1) % kSegments;
    used_ = 0;
    EventPtr& done = done_[static_cast<std::size_t>(segment_)];
    if (done != nullptr) done->synchronize();
    done = nullptr;
  }
  const std::int64_t at = segment_ * segment_bytes_ + used_;
  used_ += bytes;
  return host_ + at;
}

void ArgumentRing::send(const std::byte* table, std::int64_t bytes, std::byte* device) {
  fetch(device, table, aligned(bytes), stream_);
  check_launch("fetching a table");
}

void ArgumentRing::send_copy(std::span<const std::byte> host, std::byte* device) {
  while (!host.empty()) {
    const auto some = host.first(std::min(host.size(), static_cast<std::size_t>(segment_bytes_)));
    std::byte* const piece = begin(static_cast<std::int64_t>(some.size()));
    std::memcpy(piece, some.data(), some.size());
    fetch(device, piece, static_cast<std::int64_t>(some.size()), stream_);
    check_launch("fetching from the host");
    device += some.size();
    host = host.subspan(some.size());
  }
}

}  // namespace stagecoach::cuda
