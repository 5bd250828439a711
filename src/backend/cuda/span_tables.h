// The spans of a batch, with the pages of their keys and values, as kernels read them: in device
// memory, always at the same place while it is large enough.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cuda/argument_ring.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda {

class SpanTables {
 public:
  explicit SpanTables(ArgumentRing& ring);

  // Sends spans and page tables. Waits for the device when its memory has to grow.
  void send(std::span<const KvSpan> spans);
  // Part of what was sent last, for kernels that are queued next.
  DeviceSpans part(const KvSpan* spans, std::int64_t count) const;
  const void* memory() const { return memory_; }

 private:
  ArgumentRing& ring_;
  Scratch table_;
  std::byte* memory_ = nullptr;
  std::span<const KvSpan> sent_;
};

}  // namespace stagecoach::cuda
