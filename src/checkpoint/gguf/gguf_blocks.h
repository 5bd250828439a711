// The quantised blocks of GGUF files (https://github.com/ggml-org/ggml, src/ggml-common.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "checkpoint/block_format.h"

namespace stagecoach {

// decode_blocks for the quantised formats. In the float32 operations, in the order, of ggml's own
// dequantisation: the results are the same bits.
void decode_quantised_blocks(BlockFormat format, const std::byte* blocks, std::int64_t count,
                             float* elements);

}  // namespace stagecoach
