#include "transport/loopback/loopback_transport.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <thread>

#include "base/error.h"

namespace stagecoach {
namespace {

using std::chrono::seconds;

struct Aborted {
  int rank;
  int code;
};

Deadline soon() {
  return Clock::now() + seconds(60);
}

std::vector<std::byte> number(int value) {
  std::vector<std::byte> payload(sizeof(int));
  std::memcpy(payload.data(), &value, sizeof(int));
  return payload;
}

int number_in(const Message& message) {
  int value = -1;
  std::memcpy(&value, message.payload.data(), sizeof(int));
  return value;
}

TEST(Loopback, OneRankTalksToItself) {
  auto endpoints = make_loopback(1);
  Transport& only = *endpoints[0];
  EXPECT_EQ(only.rank(), 0);
  EXPECT_EQ(only.size(), 1);
  EXPECT_FALSE(only.host(0).empty());
  only.send(0, Channel::kData, number(5));
  only.send(0, Channel::kControl, {});
  EXPECT_EQ(number_in(*only.receive(Channel::kData, soon())), 5);
  EXPECT_TRUE(only.receive(Channel::kControl, soon())->payload.empty());
  EXPECT_TRUE(only.flush(soon()));
  only.finalize();
}

// Every rank writes to every rank from two threads and reads from two others.
TEST(Loopback, KeepsOrderAmongManyThreads) {
  constexpr int kRanks = 4;
  constexpr int kMessages = 500;
  auto endpoints = make_loopback(kRanks);
  std::vector<std::thread> threads;
  for (const Channel channel : {Channel::kData, Channel::kHeartbeat}) {
    for (auto& endpoint : endpoints) {
      threads.emplace_back([&transport = *endpoint, channel] {
        for (int i = 0; i < kMessages; ++i)
          for (int to = 0; to < kRanks; ++to) transport.send(to, channel, number(i));
      });
      threads.emplace_back([&transport = *endpoint, channel] {
        std::map<int, int> next;
        for (int i = 0; i < kRanks * kMessages; ++i) {
          const auto message = transport.receive(channel, soon());
          ASSERT_TRUE(message);
          ASSERT_EQ(number_in(*message), next[message->source]++);
        }
      });
    }
  }
  for (auto& thread : threads) thread.join();
}

// A number given out before its message is queued would arrive out of order and be refused.
TEST(Loopback, WritersOfOneChannelShareItsNumbers) {
  constexpr int kWriters = 4;
  constexpr int kMessages = 5000;
  auto endpoints = make_loopback(1);
  std::vector<std::jthread> writers;
  for (int w = 0; w < kWriters; ++w)
    writers.emplace_back([&] {
      for (int i = 0; i < kMessages; ++i) endpoints[0]->send(0, Channel::kData, number(i));
    });
  for (int i = 0; i < kWriters * kMessages; ++i)
    ASSERT_NO_THROW(endpoints[0]->receive(Channel::kData, soon())) << "message " << i;
}

TEST(Loopback, FinalizeWaitsForEveryRank) {
  auto endpoints = make_loopback(3);
  std::atomic<int> arrived = 0;
  std::vector<std::thread> threads;
  for (auto& endpoint : endpoints)
    threads.emplace_back([&] {
      ++arrived;
      endpoint->finalize();
      EXPECT_EQ(arrived, 3);
    });
  for (auto& thread : threads) thread.join();
}

TEST(Loopback, AbortEndsTheOthersWhereverTheyWait) {
  auto endpoints = make_loopback(3, [](int rank, int code) { throw Aborted{rank, code}; });
  const auto expect_lost = [](const std::function<void()>& wait) {
    try {
      wait();
      FAIL() << "outlived the abort";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kPeerLost);
      EXPECT_NE(std::string(error.what()).find("rank 1"), std::string::npos);
    }
  };
  std::thread reader([&] { expect_lost([&] { endpoints[0]->receive(Channel::kData, soon()); }); });
  std::thread finalizer([&] { expect_lost([&] { endpoints[2]->finalize(); }); });
  try {
    endpoints[1]->abort(5);
  } catch (const Aborted& aborted) {
    EXPECT_EQ(aborted.rank, 1);
    EXPECT_EQ(aborted.code, 5);
  }
  reader.join();
  finalizer.join();
}

TEST(LoopbackDeathTest, AbortEndsTheProcessByDefault) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(make_loopback(1)[0]->abort(3), testing::ExitedWithCode(3), "");
}

TEST(Loopback, AnEndpointThatVanishesIsALostPeer) {
  auto endpoints = make_loopback(2);
  endpoints[1].reset();
  EXPECT_THROW(endpoints[0]->receive(Channel::kData, soon()), Error);
}

}  // namespace
}  // namespace stagecoach
