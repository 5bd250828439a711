// Which device a rank computes on: what --device says, and what the PC has.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "backend/backend.h"

namespace stagecoach {

struct DeviceChoice {
  enum class Kind : std::uint8_t { kAuto, kCpu, kCuda } kind = Kind::kAuto;
  std::optional<int> ordinal;  // cuda:N
};
// "auto", "cpu", "cuda", "cuda:1". Throws usage_error.
DeviceChoice parse_device(const std::string& text);

// The device of this rank, with `threads` to compute. cuda: GPU number N, or as many ranks of this
// host before it, around again where there are more ranks than GPUs. auto: such a GPU where the
// module and a driver are there, else the CPU; a GPU that cannot be used is one warning a host.
// Throws resource_error where the device that was named cannot be used.
std::unique_ptr<Backend> open_device(const std::string& device, int threads);
// This rank's share of its host's processors.
std::unique_ptr<Backend> open_processor(int threads);

}  // namespace stagecoach
