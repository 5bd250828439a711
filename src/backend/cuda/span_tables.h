// The spans of a batch, with the pages of their keys and values, as kernels read them: in device
// memory.
#pragma once

#include <cstdint>

#include "backend/cuda/argument_ring.h"
#include "kernels/cuda/cuda_kernels.h"

namespace stagecoach::cuda {

// Sends spans and page tables through `ring`. The result is good for kernels that are queued next.
DeviceSpans send_spans(ArgumentRing& ring, const KvSpan* spans, std::int64_t count);

}  // namespace stagecoach::cuda
