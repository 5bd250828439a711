// How fast messages are between every two ranks, one pair at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <vector>

#include "transport/transport.h"

namespace stagecoach {

struct LinkRate {
  int from = 0, to = 0;
  double latency_seconds = 0;  // half of the median round trip of a small message
  double bytes_per_second = 0;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(from, to, latency_seconds, bytes_per_second);
  }
};

struct NetworkProbeOptions {
  int pings = 50;
  int rounds = 2;    // the best counts
  int messages = 4;  // of a round
  std::size_t message_bytes = std::size_t{4} << 20;
  const std::atomic<bool>* interrupted = nullptr;  // true ends it with Error(kInterrupted)
};

// Collective, over Channel::kData, on which nothing else may be under way. On rank 0 all ordered
// pairs, by `from`, then `to`; elsewhere those from this rank. Waits as long as peers live.
std::vector<LinkRate> probe_network(Transport& transport, const NetworkProbeOptions& options);

}  // namespace stagecoach
