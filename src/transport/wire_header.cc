#include "transport/wire_header.h"

#include <concepts>

#include "base/error.h"
#include "base/hash.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kMagic = 0x474d4353;  // "SCMG"
constexpr std::size_t kChecksumAt = 56;

template <std::unsigned_integral T>
void put(std::span<std::byte> bytes, std::size_t at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    bytes[at + i] = static_cast<std::byte>((std::uint64_t{value} >> (8 * i)) & 0xff);
}

template <std::unsigned_integral T>
T get(std::span<const std::byte> bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i)
    value |= std::to_integer<std::uint64_t>(bytes[at + i]) << (8 * i);
  return static_cast<T>(value);
}

Error corrupt(const std::string& problem) {
  return {ErrorKind::kInternal, "corrupt message: " + problem,
          "check the network (ethtool -S counts bad frames), and that all ranks run one binary"};
}

}  // namespace

std::array<std::byte, kWireHeaderBytes> encode_wire_header(const WireHeader& header) {
  std::array<std::byte, kWireHeaderBytes> bytes{};
  put(bytes, 0, kMagic);
  put(bytes, 4, kWireVersion);
  put(bytes, 6, static_cast<std::uint8_t>(header.channel));
  put(bytes, 8, header.source);
  put(bytes, 12, header.destination);
  put(bytes, 16, header.sequence);
  put(bytes, 24, header.payload_bytes);
  put(bytes, 32, header.payload_checksum);
  put(bytes, 40, header.device_bytes);
  put(bytes, kChecksumAt, xxh3(std::span<const std::byte>(bytes).first(kChecksumAt)));
  return bytes;
}

WireHeader decode_wire_header(std::span<const std::byte> bytes) {
  if (bytes.size() < kWireHeaderBytes)
    throw corrupt(fmt::format("a header of {} bytes, expected {}", bytes.size(), kWireHeaderBytes));
  // Magic and version come before the checksum, because another version may keep that elsewhere.
  if (const auto magic = get<std::uint32_t>(bytes, 0); magic != kMagic)
    throw corrupt(fmt::format("magic {:#010x}, expected {:#010x}", magic, kMagic));
  if (const auto version = get<std::uint16_t>(bytes, 4); version != kWireVersion)
    throw corrupt(fmt::format("wire version {}, expected {}", version, kWireVersion));
  const auto expected = get<std::uint64_t>(bytes, kChecksumAt);
  const auto actual = xxh3(bytes.first(kChecksumAt));
  if (actual != expected)
    throw corrupt(
        fmt::format("header checksum {}, expected {}", hash_to_hex(actual), hash_to_hex(expected)));

  const auto channel = get<std::uint8_t>(bytes, 6);
  if (channel >= kChannels)
    throw corrupt(fmt::format("channel {}, expected less than {}", channel, kChannels));
  if (get<std::uint8_t>(bytes, 7) != 0 || get<std::uint64_t>(bytes, 48) != 0)
    throw corrupt("reserved bytes of the header are not zero");
  const WireHeader header{.channel = static_cast<Channel>(channel),
                          .source = get<std::uint32_t>(bytes, 8),
                          .destination = get<std::uint32_t>(bytes, 12),
                          .sequence = get<std::uint64_t>(bytes, 16),
                          .payload_bytes = get<std::uint64_t>(bytes, 24),
                          .payload_checksum = get<std::uint64_t>(bytes, 32),
                          .device_bytes = get<std::uint64_t>(bytes, 40)};
  if (header.payload_bytes > kMaxPayloadBytes)
    throw corrupt(fmt::format("a payload of {} bytes, expected at most {}", header.payload_bytes,
                              kMaxPayloadBytes));
  if (header.device_bytes > header.payload_bytes)
    throw corrupt(fmt::format("{} bytes from a device in a payload of {}", header.device_bytes,
                              header.payload_bytes));
  return header;
}

void check_payload(const WireHeader& header, std::span<const std::byte> payload,
                   std::size_t on_device) {
  if (payload.size() + on_device != header.payload_bytes || payload.size() < header.host_bytes())
    throw corrupt(fmt::format("{} bytes of payload from rank {} on channel {}, expected {}",
                              payload.size() + on_device, header.source,
                              channel_name(header.channel), header.payload_bytes));
  const auto actual = xxh3(payload.first(header.host_bytes()));
  if (actual != header.payload_checksum)
    throw corrupt(
        fmt::format("payload checksum {} of message {} from rank {} on channel {}, expected {}",
                    hash_to_hex(actual), header.sequence, header.source,
                    channel_name(header.channel), hash_to_hex(header.payload_checksum)));
}

const char* channel_name(Channel channel) {
  switch (channel) {
    case Channel::kControl:
      return "control";
    case Channel::kData:
      return "data";
    case Channel::kHeartbeat:
      return "heartbeat";
  }
  return "unknown";
}

}  // namespace stagecoach
