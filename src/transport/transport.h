// Moves bytes between the ranks of a job. Knows nothing of what they mean.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
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

// Bytes in a device's memory, which is given back with the last copy of `data`.
struct DeviceBytes {
  std::shared_ptr<std::byte> data;
  std::size_t size = 0;
};

struct Message {
  int source = -1;
  Channel channel = Channel::kControl;
  std::vector<std::byte> payload;
  DeviceBytes device_end{};  // the rest of the payload, where it has arrived on a device
};

// A device's memory that a transport's library is to write and read by itself. Both are called by a
// thread of the transport's.
struct DeviceMemory {
  std::function<void()> use_device;  // makes the device the calling thread's
  // For `bytes` that arrive; null: there is no room now.
  std::function<std::shared_ptr<std::byte>(std::size_t bytes)> take;
};

// What a transport has more whose library knows the memory of devices (CUDA-aware MPI). Either end
// of a message may be on a device or not, whatever the other one is.
class DeviceMessages {
 public:
  virtual ~DeviceMessages() = default;

  // Lends memory for what is sent by send_from_device(); what finds no room there arrives in
  // Message::payload. Without functions: takes it back, and none of them is running any more.
  virtual void lend(DeviceMemory memory) = 0;

  // As Transport::send, to another rank; `end` is the rest of the payload, written already, and
  // stays as it is until it is given back. No checksum of ours is on it.
  virtual void send_from_device(int to, Channel channel, std::vector<std::byte> payload,
                                DeviceBytes end) = 0;
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

  // Null: messages begin and end in the host's memory.
  virtual DeviceMessages* device_messages() { return nullptr; }

  // Waits until everything queued has left, or the deadline; returns whether it has.
  virtual bool flush(Deadline deadline) = 0;

  // Ends the whole job with `code`, without waiting for anyone. Does not return.
  [[noreturn]] virtual void abort(int code) = 0;

  // Orderly end, called once by every rank when nothing is under way any more.
  virtual void finalize() = 0;
};

}  // namespace stagecoach
