#include "transport/wire_header.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "base/hash.h"

namespace stagecoach {
namespace {

const WireHeader kExample{.channel = Channel::kHeartbeat,
                          .source = 3,
                          .destination = 0x01020304,
                          .sequence = 0x1122334455667788,
                          .payload_bytes = 100'000'000,
                          .payload_checksum = 0xfedcba9876543210,
                          .device_bytes = 90'000'000};

using Encoded = std::array<std::byte, kWireHeaderBytes>;

// Gives `bytes` a checksum that holds, as a sender with a bug would.
Encoded resealed(Encoded bytes) {
  const std::uint64_t checksum = xxh3(std::span(bytes).first(56));
  for (std::size_t i = 0; i < 8; ++i) bytes[56 + i] = static_cast<std::byte>(checksum >> (8 * i));
  return bytes;
}

std::string error_of(std::span<const std::byte> bytes) {
  try {
    decode_wire_header(bytes);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    return error.what();
  }
  return "accepted";
}

TEST(WireHeader, RoundTrips) {
  EXPECT_EQ(decode_wire_header(encode_wire_header(kExample)), kExample);
  EXPECT_EQ(decode_wire_header(encode_wire_header({})), WireHeader{});
}

TEST(WireHeader, HasTheDocumentedLayout) {
  const Encoded bytes = encode_wire_header(kExample);
  const auto at = [&](std::size_t i) { return std::to_integer<int>(bytes[i]); };
  EXPECT_EQ(at(0), 'S');
  EXPECT_EQ(at(3), 'G');
  EXPECT_EQ(at(4), kWireVersion);
  EXPECT_EQ(at(6), 2);
  EXPECT_EQ(at(8), 3);
  EXPECT_EQ(at(12), 0x04);
  EXPECT_EQ(at(15), 0x01);
  EXPECT_EQ(at(16), 0x88);
  EXPECT_EQ(at(24), 100'000'000 & 0xff);
  EXPECT_EQ(at(32), 0x10);
  EXPECT_EQ(at(40), 90'000'000 & 0xff);
}

TEST(WireHeader, NoticesEveryFlippedBit) {
  for (std::size_t bit = 0; bit < kWireHeaderBytes * 8; ++bit) {
    Encoded bytes = encode_wire_header(kExample);
    bytes[bit / 8] ^= static_cast<std::byte>(1U << (bit % 8));
    EXPECT_NE(error_of(bytes), "accepted") << "bit " << bit;
  }
}

TEST(WireHeader, NoticesEveryTruncation) {
  const Encoded bytes = encode_wire_header(kExample);
  for (std::size_t length = 0; length < kWireHeaderBytes; ++length)
    EXPECT_NE(error_of(std::span(bytes).first(length)).find("expected 64"), std::string::npos);
}

TEST(WireHeader, RefusesWhatAHoldingChecksumMakesNoBetter) {
  Encoded channel = encode_wire_header(kExample);
  channel[6] = std::byte{kChannels};
  EXPECT_NE(error_of(resealed(channel)).find(fmt::format("channel {}", kChannels)),
            std::string::npos);

  Encoded version = encode_wire_header(kExample);
  version[4] = std::byte{kWireVersion + 1};
  EXPECT_NE(error_of(resealed(version)).find("wire version 3, expected 2"), std::string::npos);

  Encoded size = encode_wire_header(kExample);
  size[31] = std::byte{0x7f};
  EXPECT_NE(error_of(resealed(size)).find("expected at most"), std::string::npos);

  WireHeader device = kExample;
  device.device_bytes = device.payload_bytes + 1;
  EXPECT_NE(error_of(encode_wire_header(device)).find("100000001 bytes from a device"),
            std::string::npos);

  Encoded reserved = encode_wire_header(kExample);
  reserved[50] = std::byte{1};
  EXPECT_NE(error_of(resealed(reserved)).find("reserved"), std::string::npos);
}

TEST(WireHeader, RefusesNoise) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 10'000; ++i) {
    Encoded bytes;
    for (auto& byte : bytes) byte = static_cast<std::byte>(random());
    EXPECT_NE(error_of(i % 2 == 0 ? bytes : resealed(bytes)), "accepted");
  }
}

}  // namespace
}  // namespace stagecoach
