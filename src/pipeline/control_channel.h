#pragma once

#include <chrono>
#include <utility>

#include "transport/transport.h"

namespace stagecoach {

// The next control message, however long it takes: peers that live but compute or read are waited for,
// and peers that die end the job through PeerWatch.
inline Message receive_control(Transport& transport) {
  while (true) {
    if (auto message = transport.receive(Channel::kControl, Clock::now() + std::chrono::seconds(1)))
      return *std::move(message);
  }
}

}  // namespace stagecoach
