#include "transport/inbox.h"

#include <utility>

namespace stagecoach {

Inbox::Inbox(int rank, int size) : rank_(rank), size_(size) {
  STAGECOACH_CHECK(0 <= rank && rank < size);
  for (Queue& queue : queues_) queue.next_sequence.resize(static_cast<std::size_t>(size));
}

void Inbox::push(const WireHeader& header, std::vector<std::byte> payload, DeviceBytes device_end) {
  Queue& queue = queues_.at(static_cast<std::size_t>(header.channel));
  {
    const std::lock_guard lock(mutex_);
    queue.arrivals.push_back({header, std::move(payload), std::move(device_end)});
  }
  queue.arrived.notify_one();
}

std::optional<Message> Inbox::pop(Channel channel, Deadline deadline) {
  Queue& queue = queues_.at(static_cast<std::size_t>(channel));
  Arrival arrival;
  {
    std::unique_lock lock(mutex_);
    const bool ready = queue.arrived.wait_until(
        lock, deadline, [&] { return !queue.arrivals.empty() || failure_.has_value(); });
    if (!ready) return std::nullopt;
    if (queue.arrivals.empty()) throw Error(*failure_);
    arrival = std::move(queue.arrivals.front());
    queue.arrivals.pop_front();
    check_address(channel, arrival.header, queue.next_sequence);
  }
  check_payload(arrival.header, arrival.payload, arrival.device_end.size);
  return Message{.source = static_cast<int>(arrival.header.source),
                 .channel = channel,
                 .payload = std::move(arrival.payload),
                 .device_end = std::move(arrival.device_end)};
}

void Inbox::check_address(Channel channel, const WireHeader& header,
                          std::vector<std::uint64_t>& next) const {
  if (header.source >= static_cast<std::uint32_t>(size_) ||
      header.destination != static_cast<std::uint32_t>(rank_))
    throw Error(ErrorKind::kInternal,
                fmt::format("rank {} of {} got a {} message from rank {} for rank {}", rank_, size_,
                            channel_name(channel), header.source, header.destination));
  std::uint64_t& expected = next[header.source];
  if (header.sequence != expected)
    throw Error(ErrorKind::kInternal,
                fmt::format("rank {} got {} message {} from rank {}, expected message {}", rank_,
                            channel_name(channel), header.sequence, header.source, expected));
  ++expected;
}

void Inbox::fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_.emplace(error);
  }
  for (Queue& queue : queues_) queue.arrived.notify_all();
}

bool Inbox::failed() const {
  const std::lock_guard lock(mutex_);
  return failure_.has_value();
}

void Inbox::throw_if_failed() const {
  const std::lock_guard lock(mutex_);
  if (failure_) throw Error(*failure_);
}

}  // namespace stagecoach
