// A transport that misbehaves on purpose, for tests of everything above it.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "transport/transport.h"

namespace stagecoach {

// One line of the script. It counts the messages it applies to, from 0, and strikes those numbered
// first to first + count - 1, each with `probability`.
struct Fault {
  enum class Kind {
    kDrop,   // the message vanishes before it is numbered, as if it had never been sent
    kDelay,  // it leaves `delay` later, and what follows it to the same rank and channel waits too
    kCorrupt,      // one byte of it flips on the way: the receiver's checksum must find it
    kSilence,      // from here on nothing leaves this rank any more, on any channel
    kFailReceive,  // receive throws kPeerLost; counts calls of receive instead of messages
  };
  static constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

  Kind kind = Kind::kDrop;
  std::optional<Channel> channel{};  // all channels when absent
  std::optional<int> to{};           // all destinations when absent; not for kFailReceive
  std::int64_t first = 0;
  std::int64_t count = kForever;
  double probability = 1.0;
  std::chrono::milliseconds delay{0};
};

// Wraps `inner`. The same seed and script strike the same messages in every run. All ranks of a job
// must be wrapped, if only with an empty script, because payloads travel inside an envelope of
// ours: it lets a byte flip between the checksum's two ends, which a wrapper cannot reach
// otherwise.
std::unique_ptr<Transport> make_faulty(std::unique_ptr<Transport> inner, std::vector<Fault> script,
                                       std::uint64_t seed);

}  // namespace stagecoach
