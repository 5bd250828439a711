// The control channel with receives by source: collective exchanges follow one another without
// barriers, so a fast rank's next message may be here before a slow rank's last one.
#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "transport/transport.h"

namespace stagecoach {

class ControlChannel {
 public:
  explicit ControlChannel(Transport& transport)
      : transport_(transport), early_(static_cast<std::size_t>(transport.size())) {}

  Transport& transport() { return transport_; }
  int rank() const { return transport_.rank(); }
  int size() const { return transport_.size(); }

  void send(int to, std::vector<std::byte> payload) {
    transport_.send(to, Channel::kControl, std::move(payload));
  }

  // The next control message of `source`, however long it takes: peers that live but compute or
  // read are waited for, and peers that die end the job through PeerWatch.
  std::vector<std::byte> receive_from(int source);

 private:
  Transport& transport_;
  std::vector<std::deque<std::vector<std::byte>>> early_;  // by source, not asked for yet
};

}  // namespace stagecoach
