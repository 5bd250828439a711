#include "transport/inbox.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/hash.h"

namespace stagecoach {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> result;
  for (const int value : values) result.push_back(static_cast<std::byte>(value));
  return result;
}

WireHeader header_for(std::uint32_t source, Channel channel, std::uint64_t sequence,
                      std::span<const std::byte> payload) {
  return {.channel = channel,
          .source = source,
          .destination = 1,
          .sequence = sequence,
          .payload_bytes = payload.size(),
          .payload_checksum = xxh3(payload)};
}

void push(Inbox& inbox, std::uint32_t source, Channel channel, std::uint64_t sequence, int value) {
  auto payload = bytes({value});
  const auto header = header_for(source, channel, sequence, payload);
  inbox.push(header, std::move(payload));
}

Deadline soon() {
  return Clock::now() + seconds(30);
}

TEST(Inbox, KeepsChannelsApartAndOrderWithin) {
  Inbox inbox(1, 3);
  push(inbox, 0, Channel::kData, 0, 10);
  push(inbox, 2, Channel::kControl, 0, 20);
  push(inbox, 2, Channel::kData, 0, 30);
  push(inbox, 0, Channel::kData, 1, 11);

  EXPECT_EQ(inbox.pop(Channel::kControl, soon())->payload, bytes({20}));
  for (const auto& [source, value] : {std::pair{0, 10}, {2, 30}, {0, 11}}) {
    const auto message = inbox.pop(Channel::kData, soon());
    ASSERT_TRUE(message);
    EXPECT_EQ(message->source, source);
    EXPECT_EQ(message->channel, Channel::kData);
    EXPECT_EQ(message->payload, bytes({value}));
  }
  EXPECT_FALSE(inbox.pop(Channel::kData, Clock::now()));
}

TEST(Inbox, ReturnsNothingAtTheDeadline) {
  Inbox inbox(0, 1);
  const auto deadline = Clock::now() + milliseconds(20);
  EXPECT_FALSE(inbox.pop(Channel::kHeartbeat, deadline));
  EXPECT_GE(Clock::now(), deadline);
}

TEST(Inbox, WakesAReaderThatWaits) {
  Inbox inbox(1, 2);
  std::thread writer([&] { push(inbox, 0, Channel::kHeartbeat, 0, 7); });
  const auto message = inbox.pop(Channel::kHeartbeat, soon());
  writer.join();
  ASSERT_TRUE(message);
  EXPECT_EQ(message->payload, bytes({7}));
}

TEST(Inbox, FailureWakesReadersAfterWhatHasArrived) {
  Inbox inbox(1, 2);
  std::thread reader([&] {
    EXPECT_EQ(inbox.pop(Channel::kControl, soon())->payload, bytes({1}));
    try {
      inbox.pop(Channel::kControl, soon());
      FAIL() << "a failed inbox returned";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kPeerLost);
      EXPECT_STREQ(error.what(), "the first");
    }
  });
  push(inbox, 0, Channel::kControl, 0, 1);
  inbox.fail({ErrorKind::kPeerLost, "the first"});
  inbox.fail({ErrorKind::kInternal, "the second"});
  reader.join();
  EXPECT_TRUE(inbox.failed());
}

// The rest of a payload may be on a device; what the host has of it is checked.
TEST(Inbox, HandsOutWhatHasArrivedOnADevice) {
  Inbox inbox(1, 2);
  auto payload = bytes({1, 2, 3});
  const auto whole = bytes({1, 2, 3, 4, 5});
  WireHeader header = header_for(0, Channel::kData, 0, payload);
  header.payload_bytes = 5;
  header.device_bytes = 2;
  const DeviceBytes end{std::make_shared<std::byte>(), 2};
  inbox.push(header, payload, end);
  auto message = inbox.pop(Channel::kData, soon());
  ASSERT_TRUE(message);
  EXPECT_EQ(message->payload, payload);
  EXPECT_EQ(message->device_end.data, end.data);
  EXPECT_EQ(message->device_end.size, 2U);

  header.sequence = 1;  // it found no room on the device
  inbox.push(header, whole);
  message = inbox.pop(Channel::kData, soon());
  EXPECT_EQ(message->payload, whole);
  EXPECT_EQ(message->device_end.data, nullptr);

  const auto refused = [&](std::vector<std::byte> host, std::size_t on_device) {
    ++header.sequence;
    inbox.push(header, std::move(host), {end.data, on_device});
    EXPECT_THROW(inbox.pop(Channel::kData, soon()), Error) << on_device;
  };
  refused(bytes({1, 2, 3, 4}), 2);  // too much
  refused(bytes({1, 2}), 3);        // of the host's part
  refused(bytes({1, 2, 4}), 2);     // changed
}

void expect_internal_error(Inbox& inbox, Channel channel, const std::string& text) {
  try {
    inbox.pop(channel, soon());
    FAIL() << "accepted: " << text;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(Inbox, NoticesLostRepeatedAndMisdirectedMessages) {
  Inbox inbox(1, 2);
  push(inbox, 0, Channel::kData, 1, 0);
  expect_internal_error(inbox, Channel::kData, "message 1 from rank 0, expected message 0");
  push(inbox, 0, Channel::kControl, 0, 0);
  push(inbox, 0, Channel::kControl, 0, 0);
  EXPECT_TRUE(inbox.pop(Channel::kControl, soon()));
  expect_internal_error(inbox, Channel::kControl, "expected message 1");
  push(inbox, 2, Channel::kHeartbeat, 0, 0);
  expect_internal_error(inbox, Channel::kHeartbeat, "from rank 2");
  inbox.push({.channel = Channel::kHeartbeat, .source = 0, .destination = 0}, {});
  expect_internal_error(inbox, Channel::kHeartbeat, "for rank 0");
}

TEST(Inbox, NoticesAChangedPayload) {
  Inbox inbox(1, 2);
  const auto header = header_for(0, Channel::kData, 0, bytes({1, 2, 3}));
  inbox.push(header, bytes({1, 2, 4}));
  expect_internal_error(inbox, Channel::kData, "payload checksum");
  auto shorter = header;
  shorter.sequence = 1;
  inbox.push(shorter, bytes({1, 2}));
  expect_internal_error(inbox, Channel::kData, "2 bytes of payload");
}

}  // namespace
}  // namespace stagecoach
