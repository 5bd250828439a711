#include "pipeline/network_probe.h"

#include <gtest/gtest.h>

#include <mutex>

#include "ranks.h"

namespace stagecoach {
namespace {

TEST(NetworkProbe, EveryOrderedPairOnce) {
  for (const int size : {1, 2, 4}) {
    std::mutex mutex;
    std::vector<std::vector<LinkRate>> links(static_cast<std::size_t>(size));
    const auto thrown = run_ranks(size, [&](Transport& transport) {
      const auto mine =
          probe_network(transport, {.pings = 3, .rounds = 1, .messages = 2, .message_bytes = 1000});
      {
        const std::lock_guard lock(mutex);
        links[static_cast<std::size_t>(transport.rank())] = mine;
      }
      transport.finalize();
    });
    for (const auto& error : thrown) EXPECT_FALSE(error);
    std::vector<std::pair<int, int>> expected, found;
    for (int from = 0; from < size; ++from)
      for (int to = 0; to < size; ++to)
        if (from != to) expected.emplace_back(from, to);
    for (const LinkRate& link : links[0]) {
      found.emplace_back(link.from, link.to);
      EXPECT_GT(link.latency_seconds, 0);
      EXPECT_GT(link.bytes_per_second, 0);
    }
    EXPECT_EQ(found, expected);
    for (int r = 1; r < size; ++r) {
      EXPECT_EQ(links[static_cast<std::size_t>(r)].size(), static_cast<std::size_t>(size - 1));
      for (const LinkRate& link : links[static_cast<std::size_t>(r)]) EXPECT_EQ(link.from, r);
    }
  }
}

TEST(NetworkProbe, AnInterruptEndsIt) {
  const std::atomic<bool> interrupted{true};
  const auto thrown = run_ranks(
      2, [&](Transport& transport) { probe_network(transport, {.interrupted = &interrupted}); });
  for (const auto& error : thrown) EXPECT_TRUE(error);
}

}  // namespace
}  // namespace stagecoach
