// Memory of a device for hidden states that other ranks send and receive there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "backend/backend.h"

namespace stagecoach {

// A fixed number of equal pieces, zeroed. Thread-safe, but for its end.
class DeviceRows {
 public:
  DeviceRows(Backend& backend, int pieces, std::int64_t piece_bytes);
  // Whoever still has a piece may be writing there: then the memory stays with the process.
  ~DeviceRows();
  DeviceRows(const DeviceRows&) = delete;
  DeviceRows& operator=(const DeviceRows&) = delete;

  // A piece of its own until the last copy of the result is gone. Null: all are taken, or none has
  // so many bytes.
  std::shared_ptr<std::byte> take(std::size_t bytes);
  // As Backend::use.
  void use_device() { backend_.use(); }

 private:
  struct Free;

  Backend& backend_;
  const int pieces_;
  const std::int64_t piece_bytes_;
  Buffer memory_;
  std::shared_ptr<Free> free_;
};

}  // namespace stagecoach
