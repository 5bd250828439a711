// Where a rank's messages wait for their readers. Every transport has one; whoever brings a message
// pushes it raw, and the reader's thread pays for the checksum: a transport's own thread must get
// back to its network at once.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "base/error.h"
#include "transport/transport.h"
#include "transport/wire_header.h"

namespace stagecoach {

class Inbox {
 public:
  // For `rank` of a job of `size` ranks.
  Inbox(int rank, int size);

  // Thread-safe; pushes of one source and channel must come in sending order.
  void push(const WireHeader& header, std::vector<std::byte> payload, DeviceBytes device_end = {});

  // As Transport::receive. Verifies addresses, sequence number, length and checksum.
  std::optional<Message> pop(Channel channel, Deadline deadline);

  // Wakes all readers. What has arrived is still handed out, since it may say why; then every pop
  // throws `error`. The first failure counts.
  void fail(const Error& error);
  bool failed() const;
  void throw_if_failed() const;

 private:
  struct Arrival {
    WireHeader header;
    std::vector<std::byte> payload;
    DeviceBytes device_end;
  };
  struct Queue {
    std::condition_variable arrived;
    std::deque<Arrival> arrivals;
    std::vector<std::uint64_t> next_sequence;  // by source
  };

  void check_address(Channel channel, const WireHeader& header,
                     std::vector<std::uint64_t>& next) const;

  const int rank_;
  const int size_;
  mutable std::mutex mutex_;
  std::array<Queue, kChannels> queues_;
  std::optional<Error> failure_;
};

// Numbers the messages that one rank sends. Not thread-safe: the caller's lock must also cover the
// queue, or numbers and order part ways.
class SequenceNumbers {
 public:
  explicit SequenceNumbers(int size) : next_(static_cast<std::size_t>(size)) {}
  std::uint64_t next(int to, Channel channel) {
    return next_.at(static_cast<std::size_t>(to))[static_cast<std::size_t>(channel)]++;
  }

 private:
  std::vector<std::array<std::uint64_t, kChannels>> next_;
};

}  // namespace stagecoach
