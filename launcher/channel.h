// A conversation with one other end, in frames. TLS in real life (secure_channel.h); tests bring
// their own.
#pragma once

#include <chrono>
#include <cstddef>
#include <span>
#include <string>

#include "launcher/frame.h"

namespace stagecoach {

using Seconds = std::chrono::duration<double>;

// Who says nothing for so long has gone.
inline constexpr Seconds kSilence{6};

class Channel {
 public:
  virtual ~Channel() = default;

  // The other end, in messages.
  virtual const std::string& peer() const = 0;
  // All throw kPeerLost when the other end closes or lets time run out; receive throws FrameError
  // for what is no frame.
  virtual void send(const Json& message) = 0;
  virtual void send_data(std::span<const std::byte> data) = 0;
  virtual Frame receive(Seconds patience) = 0;
  // The next frame's data, into the beginning of `into`; how many bytes. A message, or more than
  // has room, is a FrameError. Slabs come this way, without a copy on the way.
  virtual std::size_t receive_data(std::span<std::byte> into, Seconds patience) = 0;
  // Nothing more is said here; what the other end still sends is thrown away until it closes, too,
  // for a moment, so that what was said last gets there.
  virtual void close_gently() = 0;
  // One of these has failed: nothing more can be said.
  virtual bool broken() const = 0;
  // A socket, for polling whether the other end has closed: one that owes nothing sends nothing.
  virtual int descriptor() const = 0;
};

}  // namespace stagecoach
