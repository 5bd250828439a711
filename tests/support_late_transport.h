// A transport that knows the memory of devices and takes its time, for tests of those who use it.
#pragma once

#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "transport/transport.h"

namespace stagecoach {

// Messages whose end has left a device, and of them those whose end has come to one.
struct DeviceTraffic {
  std::atomic<int> sent = 0, landed = 0;
};

// Wraps `inner`, as do all ranks of a job. What a rank sends is read from its device when the rank
// has nothing else to do than to wait, as late as can be; with a backend of its own, so that no
// stream orders its copies with the rank's ops. For one thread.
class LateTransport final : public Transport, private DeviceMessages {
 public:
  LateTransport(std::unique_ptr<Transport> inner, std::unique_ptr<Backend> device,
                DeviceTraffic& traffic)
      : inner_(std::move(inner)), device_(std::move(device)), traffic_(traffic) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& host(int rank) const override { return inner_->host(rank); }
  DeviceMessages* device_messages() override { return this; }

  void send(int to, Channel channel, std::vector<std::byte> payload) override {
    waiting_.push_back({to, channel, std::move(payload), {}});
  }
  std::optional<Message> receive(Channel channel, Deadline deadline) override {
    auto message = inner_->receive(channel, Clock::now());
    if (!message && deadline > Clock::now()) {
      leave();
      message = inner_->receive(channel, deadline);
    }
    if (message) land(*message);
    return message;
  }
  bool flush(Deadline deadline) override {
    leave();
    return inner_->flush(deadline);
  }
  [[noreturn]] void abort(int code) override {
    inner_->abort(code);
    std::abort();  // never reached; g++ 12 forgets [[noreturn]] on virtual calls
  }
  void finalize() override {
    leave();
    inner_->finalize();
  }

 private:
  struct Waiting {
    int to;
    Channel channel;
    std::vector<std::byte> payload;
    DeviceBytes end;
  };

  void lend(DeviceMemory memory) override { lent_ = std::move(memory); }
  void send_from_device(int to, Channel channel, std::vector<std::byte> payload,
                        DeviceBytes end) override {
    STAGECOACH_CHECK(to != rank() && end.size > 0);
    ++traffic_.sent;
    waiting_.push_back({to, channel, std::move(payload), std::move(end)});
  }

  // In front of every payload: the bytes of its end that were on a device.
  void leave() {
    for (; !waiting_.empty(); waiting_.pop_front()) {
      Waiting& message = waiting_.front();
      std::vector<std::byte> whole(sizeof(std::size_t) + message.payload.size() + message.end.size);
      std::memcpy(whole.data(), &message.end.size, sizeof(std::size_t));
      std::copy(message.payload.begin(), message.payload.end(),
                whole.begin() + sizeof(std::size_t));
      if (message.end.size > 0)
        device_->download(std::span(whole).last(message.end.size), message.end.data.get());
      inner_->send(message.to, message.channel, std::move(whole));
    }
  }
  void land(Message& message) {
    std::size_t bytes = 0;
    std::memcpy(&bytes, message.payload.data(), sizeof(bytes));
    message.payload.erase(message.payload.begin(), message.payload.begin() + sizeof(bytes));
    if (bytes == 0 || !lent_.take) return;
    lent_.use_device();
    auto memory = lent_.take(bytes);
    if (memory == nullptr) return;
    ++traffic_.landed;
    device_->upload(memory.get(), std::span(message.payload).last(bytes));
    device_->synchronize();
    message.payload.resize(message.payload.size() - bytes);
    message.device_end = {std::move(memory), bytes};
  }

  const std::unique_ptr<Transport> inner_;
  const std::unique_ptr<Backend> device_;
  DeviceTraffic& traffic_;
  DeviceMemory lent_;
  std::deque<Waiting> waiting_;
};

}  // namespace stagecoach
