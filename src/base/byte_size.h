#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace stagecoach {

// "8GiB", "500MB", "1.5 GB", "4096". Powers of 1024 with an i, of 1000 without. Throws usage_error.
std::int64_t parse_byte_size(std::string_view text);

// "5.20 MB", "13.1 GB", "640 kB": three digits, powers of 1000, as disks and networks are sold.
std::string format_bytes(std::int64_t bytes);

}  // namespace stagecoach
