#pragma once

#include <cstddef>
#include <cstdint>

namespace stagecoach {

// Zeroed memory aligned to 64 bytes at least; large blocks are mappings of their own, which go back
// to the system when freed. Throws resource_error. The same `bytes` go to free_zeroed.
std::byte* allocate_zeroed(std::int64_t bytes);
void free_zeroed(std::byte* data, std::int64_t bytes);

}  // namespace stagecoach
