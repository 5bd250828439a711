#include "transport/faulty/faulty_transport.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "transport/loopback/loopback_transport.h"

namespace stagecoach {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

Deadline soon() {
  return Clock::now() + seconds(60);
}

// Rank 0 misbehaves as scripted, rank 1 does not.
struct Pair {
  explicit Pair(std::vector<Fault> script, std::uint64_t seed = 1) {
    auto plain = make_loopback(2);
    sender = make_faulty(std::move(plain[0]), std::move(script), seed);
    receiver = make_faulty(std::move(plain[1]), {}, seed);
  }

  void send(int value, Channel channel = Channel::kData) {
    sender->send(1, channel, {static_cast<std::byte>(value)});
  }
  int receive(Channel channel = Channel::kData) {
    const auto message = receiver->receive(channel, soon());
    return message ? std::to_integer<int>(message->payload.at(0)) : -1;
  }
  bool nothing_there(Channel channel = Channel::kData) {
    return !receiver->receive(channel, Clock::now()).has_value();
  }

  std::unique_ptr<Transport> sender;
  std::unique_ptr<Transport> receiver;
};

TEST(Faulty, PassesEverythingWithoutAScript) {
  Pair pair({});
  for (int i = 0; i < 10; ++i) pair.send(i);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(pair.receive(), i);
  EXPECT_EQ(pair.sender->rank(), 0);
  EXPECT_EQ(pair.sender->size(), 2);
}

TEST(Faulty, DropsTheScriptedMessages) {
  Pair pair({{.kind = Fault::Kind::kDrop, .channel = Channel::kData, .first = 1, .count = 2}});
  for (int i = 0; i < 5; ++i) {
    pair.send(i);
    pair.send(i, Channel::kControl);
  }
  for (const int expected : {0, 3, 4}) EXPECT_EQ(pair.receive(), expected);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(pair.receive(Channel::kControl), i);
  EXPECT_TRUE(pair.nothing_there());
}

TEST(Faulty, TheSeedDecidesWhatIsDropped) {
  const auto survivors = [](std::uint64_t seed) {
    Pair pair({{.kind = Fault::Kind::kDrop, .probability = 0.5}}, seed);
    for (int i = 0; i < 100; ++i) pair.send(i);
    std::vector<int> arrived;
    while (const auto message = pair.receiver->receive(Channel::kData, Clock::now()))
      arrived.push_back(std::to_integer<int>(message->payload.at(0)));
    return arrived;
  };
  const auto first = survivors(1);
  EXPECT_GT(first.size(), 20U);
  EXPECT_LT(first.size(), 80U);
  EXPECT_EQ(first, survivors(1));
  EXPECT_NE(first, survivors(2));
}

TEST(Faulty, AFlippedByteIsNoticedWhereverItIs) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Pair pair({{.kind = Fault::Kind::kCorrupt, .first = 1, .count = 1}}, seed);
    for (int i = 0; i < 3; ++i) pair.sender->send(1, Channel::kData, std::vector<std::byte>(100));
    EXPECT_TRUE(pair.receiver->receive(Channel::kData, soon()));
    try {
      pair.receiver->receive(Channel::kData, soon());
      FAIL() << "a flipped byte went unnoticed, seed " << seed;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInternal);
    }
    EXPECT_TRUE(pair.receiver->receive(Channel::kData, soon()));
  }
}

TEST(Faulty, DelayHoldsBackAFlowInOrderAndNoOther) {
  Pair pair({{.kind = Fault::Kind::kDelay,
              .channel = Channel::kData,
              .first = 0,
              .count = 1,
              .delay = milliseconds(100)}});
  const auto begin = Clock::now();
  for (int i = 0; i < 3; ++i) pair.send(i);
  pair.send(9, Channel::kControl);
  EXPECT_EQ(pair.receive(Channel::kControl), 9);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(pair.receive(), i);
  EXPECT_GE(Clock::now() - begin, milliseconds(100));
  EXPECT_TRUE(pair.sender->flush(soon()));
}

TEST(Faulty, FlushWaitsForDelayedMessages) {
  Pair pair({{.kind = Fault::Kind::kDelay, .delay = seconds(1000)}});
  pair.send(0);
  EXPECT_FALSE(pair.sender->flush(Clock::now() + milliseconds(10)));
}

TEST(Faulty, SilenceIsForGoodAndOnAllChannels) {
  Pair pair({{.kind = Fault::Kind::kSilence, .channel = Channel::kData, .first = 2, .count = 1}});
  for (int i = 0; i < 4; ++i) pair.send(i);
  pair.send(9, Channel::kHeartbeat);
  EXPECT_EQ(pair.receive(), 0);
  EXPECT_EQ(pair.receive(), 1);
  EXPECT_TRUE(pair.nothing_there());
  EXPECT_TRUE(pair.nothing_there(Channel::kHeartbeat));
}

TEST(Faulty, ReceiveFailsWhenScripted) {
  Pair pair({{.kind = Fault::Kind::kFailReceive, .channel = Channel::kControl, .first = 1}});
  pair.receiver->send(0, Channel::kControl, {});
  EXPECT_TRUE(pair.sender->receive(Channel::kControl, soon()));
  try {
    pair.sender->receive(Channel::kControl, soon());
    FAIL() << "received";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::kPeerLost);
  }
  EXPECT_FALSE(pair.sender->receive(Channel::kData, Clock::now()));
}

}  // namespace
}  // namespace stagecoach
