// Moves host bytes between the ranks of a job. Knows nothing of what they mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"

namespace stagecoach {

// Messages of one channel from one rank arrive in the order in which they were sent.
enum class Channel : std::uint8_t { kControl, kData, kHeartbeat };
inline constexpr int kChannels = 3;

struct Message {
  int source = -1;
  Channel channel = Channel::kControl;
  std::vector<std::byte> payload;
};

class Transport {
 public:
  virtual ~Transport() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& host(int rank) const = 0;

  // Queues `payload` and returns; thread-safe. Header and payload are checksummed on the way.
  virtual void send(int to, Channel channel, std::vector<std::byte> payload) = 0;

  // The next message on `channel`, from any rank; nullopt at the deadline. Thread-safe, one reader
  // a channel. Throws Error(kPeerLost) once the transport has failed, kInternal on a corrupt
  // message.
  virtual std::optional<Message> receive(Channel channel, Deadline deadline) = 0;

  // Waits until everything queued has left, or the deadline; returns whether it has.
  virtual bool flush(Deadline deadline) = 0;

  // Ends the whole job with `code`, without waiting for anyone. Does not return.
  [[noreturn]] virtual void abort(int code) = 0;

  // Orderly end, called once by every rank when nothing is under way any more.
  virtual void finalize() = 0;
};

}  // namespace stagecoach
