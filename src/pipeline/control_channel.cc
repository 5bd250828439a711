#include "pipeline/control_channel.h"

#include <chrono>
#include <utility>

namespace stagecoach {

std::vector<std::byte> ControlChannel::receive_from(int source) {
  auto& wanted = early_[static_cast<std::size_t>(source)];
  while (wanted.empty()) {
    auto message = transport_.receive(Channel::kControl, Clock::now() + std::chrono::seconds(1));
    if (message)
      early_.at(static_cast<std::size_t>(message->source)).push_back(std::move(message->payload));
  }
  std::vector<std::byte> payload = std::move(wanted.front());
  wanted.pop_front();
  return payload;
}

}  // namespace stagecoach
