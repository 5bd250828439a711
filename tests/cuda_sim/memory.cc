#include "memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace cuda_sim {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::uint32_t kAlwaysClosed = 64;  // pages
constexpr std::size_t kGap = 1 << 20;        // nobody's, between allocations

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// NaN as float32, float16 and bfloat16, and unlike the bytes of fresh memory.
constexpr std::array<std::byte, kPage + 2> kCanaries = [] {
  std::array<std::byte, kPage + 2> bytes{};
  for (std::size_t n = 0; n < bytes.size(); ++n)
    bytes[n] = n % 2 != 0 ? std::byte{0xff} : std::byte{0xa5};
  return bytes;
}();

const std::byte* canaries_for(const std::byte* begin) {
  return kCanaries.data() + (reinterpret_cast<std::uintptr_t>(begin) & 1);
}
// Both of less than a page and a byte.
void write_canaries(std::byte* begin, std::byte* end) {
  std::memcpy(begin, canaries_for(begin), static_cast<std::size_t>(end - begin));
}
bool canaries_in(const std::byte* begin, const std::byte* end) {
  return std::memcmp(begin, canaries_for(begin), static_cast<std::size_t>(end - begin)) == 0;
}
bool intact(const Allocation& allocation) {
  return canaries_in(allocation.pages, allocation.data) &&
         canaries_in(allocation.data + allocation.bytes, allocation.pages + allocation.page_bytes);
}

std::byte* map(std::size_t bytes, int protection) {
  void* const pages =
      mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return pages == MAP_FAILED ? nullptr : static_cast<std::byte*>(pages);
}

}  // namespace

DeviceMemory::DeviceMemory(int device, std::size_t limit, std::size_t piece, bool protect)
    : device_(device),
      limit_(limit),
      piece_(piece),
      protect_(protect),
      base_(map(kReserved, PROT_NONE)) {
  if (base_ == nullptr) {
    fmt::print(stderr, "cuda_sim: cannot reserve addresses for device {}\n", device);
    std::abort();
  }
  next_ = base_ + kGap;
}

DeviceMemory::~DeviceMemory() {
  munmap(base_, kReserved);
}

std::size_t DeviceMemory::used() const {
  return alone_ + round_up(pooled_, piece_);
}

std::size_t& DeviceMemory::sum_with(std::size_t bytes) {
  return bytes >= piece_ / 2 ? alone_ : pooled_;
}

std::size_t DeviceMemory::counted(std::size_t bytes) const {
  return round_up(bytes, bytes >= piece_ / 2 ? piece_ : kAlignment);
}

std::byte* DeviceMemory::allocate(std::size_t bytes) {
  if (bytes > limit_) return nullptr;
  const std::size_t rounded = round_up(bytes, kAlignment);
  const std::size_t page_bytes = round_up(rounded, kPage);
  std::size_t& sum = sum_with(bytes);
  sum += counted(bytes);
  if (used() > limit_ || next_ + page_bytes + kGap > base_ + kReserved ||
      mprotect(next_, page_bytes, PROT_READ | PROT_WRITE) != 0) {
    sum -= counted(bytes);
    return nullptr;
  }
  std::byte* const pages = next_;
  next_ += page_bytes + kGap;
  peak_ = std::max(peak_, used());
  std::byte* const data = pages + page_bytes - rounded;
  std::memset(data, 0xff, bytes);
  write_canaries(pages, data);
  write_canaries(data + bytes, pages + page_bytes);
  Allocation& allocation = live_[data] = {data, bytes, pages, page_bytes, true};
  open_.push_back(&allocation);
  return data;
}

DeviceMemory::Freed DeviceMemory::free(void* data) {
  const auto found = live_.find(static_cast<std::byte*>(data));
  if (found == live_.end()) return Freed::kUnknown;
  const Allocation allocation = found->second;
  open_page(allocation.data);
  const bool good = intact(allocation);
  std::erase(open_, &found->second);
  madvise(allocation.pages, allocation.page_bytes, MADV_DONTNEED);
  mprotect(allocation.pages, allocation.page_bytes, PROT_NONE);
  sum_with(allocation.bytes) -= counted(allocation.bytes);
  freed_[allocation.data] = allocation.bytes;
  live_.erase(found);
  return good ? Freed::kFreed : Freed::kOverwritten;
}

const Allocation* DeviceMemory::find(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  auto after = live_.upper_bound(byte);
  if (after == live_.begin()) return nullptr;
  const Allocation& allocation = std::prev(after)->second;
  return byte < allocation.data + std::max<std::size_t>(allocation.bytes, 1) ? &allocation
                                                                             : nullptr;
}

bool DeviceMemory::contains(const void* address, std::size_t bytes) const {
  const Allocation* const allocation = find(address);
  return allocation != nullptr &&
         bytes <=
             allocation->bytes - static_cast<std::size_t>(static_cast<const std::byte*>(address) -
                                                          allocation->data);
}

std::string DeviceMemory::describe(const void* address) const {
  const auto* byte = static_cast<const std::byte*>(address);
  if (const Allocation* inside = find(address))
    return fmt::format("byte {} of an allocation of {} bytes on device {}", byte - inside->data,
                       inside->bytes, device_);
  const auto live = live_.upper_bound(byte);
  const auto freed = freed_.upper_bound(byte);
  if (freed != freed_.begin()) {
    const auto [start, bytes] = *std::prev(freed);
    if (byte < start + bytes)
      return fmt::format("byte {} of {} bytes that were freed on device {}", byte - start, bytes,
                         device_);
  }
  if (live != live_.begin()) {
    const Allocation& before = std::prev(live)->second;
    return fmt::format("{} bytes behind the end of an allocation of {} bytes on device {}",
                       byte - (before.data + before.bytes), before.bytes, device_);
  }
  return fmt::format("before all allocations of device {}", device_);
}

bool DeviceMemory::open_page(const void* address) {
  const auto* byte = static_cast<const std::byte*>(address);
  // The canaries' pages belong to it: an access to them is found by their change, not by a fault.
  auto after = live_.upper_bound(byte);
  Allocation* allocation = nullptr;
  if (after != live_.begin()) {
    Allocation& before = std::prev(after)->second;
    if (byte < before.pages + before.page_bytes) allocation = &before;
  }
  if (allocation == nullptr && after != live_.end() && byte >= after->second.pages)
    allocation = &after->second;
  if (allocation == nullptr || allocation->open) return false;
  if (mprotect(allocation->pages, allocation->page_bytes, PROT_READ | PROT_WRITE) != 0)
    return false;
  allocation->open = true;
  open_.push_back(allocation);
  return true;
}

bool DeviceMemory::canaries_intact() const {
  return std::ranges::all_of(open_, [](const Allocation* one) { return intact(*one); });
}

void DeviceMemory::repair_canaries() {
  for (const Allocation* one : open_) {
    write_canaries(one->pages, one->data);
    write_canaries(one->data + one->bytes, one->pages + one->page_bytes);
  }
}

void DeviceMemory::close(Random& random) {
  if (!protect_ || open_.empty()) return;
  // It costs by the page: what is big is closed by chance.
  std::size_t pages = 0;
  for (const Allocation* one : open_) pages += one->page_bytes / kPage;
  if (pages > kAlwaysClosed && !random.chance(kAlwaysClosed, static_cast<std::uint32_t>(pages)))
    return;
  // One call for the whole range: what lies between is closed anyway.
  mprotect(base_, static_cast<std::size_t>(next_ - base_), PROT_NONE);
  for (Allocation* one : open_) one->open = false;
  open_.clear();
}

std::string DeviceMemory::leaks() const {
  std::string lines;
  for (const auto& [data, allocation] : live_)
    lines += fmt::format("device {}: {} bytes at {}\n", device_, allocation.bytes,
                         static_cast<const void*>(data));
  return lines;
}

void PinnedMemory::clear() {
  for (const auto& [data, range] : ranges_)
    if (range.page_bytes != 0) munmap(const_cast<std::byte*>(data), range.page_bytes + kPage);
  ranges_.clear();
}

void* PinnedMemory::allocate(std::size_t bytes) {
  const std::size_t page_bytes = round_up(std::max<std::size_t>(bytes, 1), kPage);
  std::byte* const data = map(page_bytes + kPage, PROT_READ | PROT_WRITE);
  if (data == nullptr) return nullptr;
  mprotect(data + page_bytes, kPage, PROT_NONE);
  std::memset(data, 0xff, bytes);
  write_canaries(data + bytes, data + page_bytes);
  ranges_[data] = {bytes, page_bytes};
  return data;
}

DeviceMemory::Freed PinnedMemory::free(void* data) {
  const auto found = ranges_.find(static_cast<std::byte*>(data));
  if (found == ranges_.end() || found->second.page_bytes == 0) return DeviceMemory::Freed::kUnknown;
  const bool good =
      canaries_in(found->first + found->second.bytes, found->first + found->second.page_bytes);
  munmap(data, found->second.page_bytes + kPage);
  ranges_.erase(found);
  return good ? DeviceMemory::Freed::kFreed : DeviceMemory::Freed::kOverwritten;
}

PinnedMemory::Registered PinnedMemory::add(void* data, std::size_t bytes) {
  const auto* begin = static_cast<std::byte*>(data);
  auto after = ranges_.lower_bound(begin + bytes);
  if (after != ranges_.begin()) {
    const auto& [start, range] = *std::prev(after);
    if (start + range.bytes > begin) return Registered::kOverlaps;
  }
  ranges_[begin] = {bytes, 0};
  return Registered::kDone;
}

PinnedMemory::Registered PinnedMemory::remove(void* data) {
  const auto found = ranges_.find(static_cast<std::byte*>(data));
  if (found == ranges_.end() || found->second.page_bytes != 0) return Registered::kUnknown;
  ranges_.erase(found);
  return Registered::kDone;
}

bool PinnedMemory::contains(const void* address, std::size_t bytes) const {
  const auto* byte = static_cast<const std::byte*>(address);
  auto after = ranges_.upper_bound(byte);
  if (after == ranges_.begin()) return false;
  const auto& [start, range] = *std::prev(after);
  const auto offset = static_cast<std::size_t>(byte - start);
  return offset < range.bytes && bytes <= range.bytes - offset;
}

std::size_t PinnedMemory::bytes() const {
  std::size_t sum = 0;
  for (const auto& [data, range] : ranges_) sum += range.bytes;
  return sum;
}

std::string PinnedMemory::leaks() const {
  std::string lines;
  for (const auto& [data, range] : ranges_)
    lines += fmt::format("{}: {} bytes at {}\n",
                         range.page_bytes != 0 ? "pinned memory" : "registered memory", range.bytes,
                         static_cast<const void*>(data));
  return lines;
}

}  // namespace cuda_sim
