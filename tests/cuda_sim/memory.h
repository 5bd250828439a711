// Device memory and pinned host memory. A device owns a range of addresses; an allocation ends (but
// for 256-byte alignment, where canaries stand) at a gap that nobody may touch, and addresses are
// not used twice. Between ops the whole range is closed to the host; an op opens what it touches,
// by the fault that its first access takes (fault_handler.cc).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "random.h"

namespace cuda_sim {

struct Allocation {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::byte* pages = nullptr;  // with the canaries before and after
  std::size_t page_bytes = 0;
  bool open = false;
};

class DeviceMemory {
 public:
  DeviceMemory(int device, std::size_t limit, std::size_t piece, bool protect);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;

  std::byte* allocate(std::size_t bytes);  // nullptr: it does not fit
  enum class Freed { kFreed, kUnknown, kOverwritten };
  Freed free(void* data);

  bool in_range(const void* address) const {
    const auto* byte = static_cast<const std::byte*>(address);
    return byte >= base_ && byte < base_ + kReserved;
  }
  const Allocation* find(const void* address) const;  // live, address inside its bytes
  bool contains(const void* address, std::size_t bytes) const;
  // "4 bytes behind the end of an allocation of 1024 bytes"; for addresses in range.
  std::string describe(const void* address) const;

  bool open_page(const void* address);  // on a fault: whether the access may be tried again
  bool canaries_intact() const;         // of what is open
  void repair_canaries();               // so that one wrong write is reported once
  void close(Random& random);

  std::size_t limit() const { return limit_; }
  // In pieces: an allocation of half a piece and more by itself, smaller ones together.
  std::size_t used() const;
  std::size_t peak() const { return peak_; }
  std::string leaks() const;

 private:
  std::size_t& sum_with(std::size_t bytes);
  std::size_t counted(std::size_t bytes) const;

  static constexpr std::size_t kReserved = std::size_t{1} << 38;
  static constexpr std::size_t kAlignment = 256;

  int device_;
  std::size_t limit_, piece_, peak_ = 0;
  std::size_t alone_ = 0;   // of large allocations
  std::size_t pooled_ = 0;  // of small ones, which share pieces
  bool protect_;
  std::byte* base_;
  std::byte* next_;
  std::map<const std::byte*, Allocation> live_;
  std::map<const std::byte*, std::size_t> freed_;
  std::vector<Allocation*> open_;
};

class PinnedMemory {
 public:
  ~PinnedMemory() { clear(); }
  void clear();
  void* allocate(std::size_t bytes);
  DeviceMemory::Freed free(void* data);
  enum class Registered { kDone, kOverlaps, kUnknown };
  Registered add(void* data, std::size_t bytes);
  Registered remove(void* data);
  bool contains(const void* address, std::size_t bytes) const;
  std::size_t bytes() const;
  std::string leaks() const;

 private:
  struct Range {
    std::size_t bytes;
    std::size_t page_bytes;  // 0: the program's own, registered
  };
  std::map<const std::byte*, Range> ranges_;
};

}  // namespace cuda_sim
