// What precedes every payload between ranks: 64 bytes, little-endian, the same for all transports.
//
//   0  u32 magic "SCMG"      16  u64 sequence number      48  u64 zero
//   4  u16 version           24  u64 payload bytes        56  u64 XXH3 of bytes 0 to 55
//   6  u8  channel           32  u64 XXH3 of payload
//   7  u8  zero              40  u64 device bytes
//   8  u32 source rank
//  12  u32 destination rank
//
// The last `device bytes` of the payload come from a device's memory, and may be received into one:
// the checksum, which the host computes, is of what is before them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "transport/transport.h"

namespace stagecoach {

inline constexpr std::size_t kWireHeaderBytes = 64;
inline constexpr std::uint16_t kWireVersion = 2;
// More than any micro-batch of hidden states, less than what a flipped length bit would ask for.
inline constexpr std::uint64_t kMaxPayloadBytes = std::uint64_t{4} << 30;

struct WireHeader {
  Channel channel = Channel::kControl;
  std::uint32_t source = 0;
  std::uint32_t destination = 0;
  std::uint64_t sequence = 0;  // counts the messages of one channel from source to destination
  std::uint64_t payload_bytes = 0;
  std::uint64_t payload_checksum = 0;
  std::uint64_t device_bytes = 0;  // at the payload's end

  std::uint64_t host_bytes() const { return payload_bytes - device_bytes; }

  bool operator==(const WireHeader&) const = default;
};

std::array<std::byte, kWireHeaderBytes> encode_wire_header(const WireHeader& header);

// Throws Error(kInternal) unless `bytes` begin with an intact header of this version whose payload
// is at most kMaxPayloadBytes and has its device bytes. Bytes after the header are not looked at.
WireHeader decode_wire_header(std::span<const std::byte> bytes);

// Throws Error(kInternal) unless length and checksum of `payload`, and of the `on_device` bytes
// after it that have arrived on a device, are those of `header`.
void check_payload(const WireHeader& header, std::span<const std::byte> payload,
                   std::size_t on_device = 0);

const char* channel_name(Channel channel);

}  // namespace stagecoach
