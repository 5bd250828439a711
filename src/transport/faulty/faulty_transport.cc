#include "transport/faulty/faulty_transport.h"

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/hash.h"
#include "transport/wire_header.h"

namespace stagecoach {
namespace {

// One draw of a counter-based generator: which messages are struck does not depend on threads.
std::uint64_t draw(std::uint64_t seed, std::uint64_t fault, std::uint64_t message) {
  const std::array<std::uint64_t, 3> key{seed, fault, message};
  return xxh3(std::as_bytes(std::span(key)));
}

std::vector<std::byte> seal(const WireHeader& header, std::span<const std::byte> payload) {
  const auto encoded = encode_wire_header(header);
  std::vector<std::byte> sealed(encoded.begin(), encoded.end());
  sealed.insert(sealed.end(), payload.begin(), payload.end());
  return sealed;
}

struct Parcel {
  int to;
  Channel channel;
  std::vector<std::byte> sealed;
};

// Sends parcels when they are due, each flow (destination, channel) in its order.
class DelayLine {
 public:
  explicit DelayLine(Transport& inner)
      : inner_(inner), thread_([this](const std::stop_token& stop) { run(stop); }) {}

  // Returns false, leaving `parcel` alone, when nothing holds it back.
  bool hold(Parcel& parcel, std::chrono::milliseconds delay) {
    const std::lock_guard lock(mutex_);
    Deadline& flow_is_free = free_at_[{parcel.to, parcel.channel}];
    const auto due = std::max(Clock::now() + delay, flow_is_free);
    const bool flow_waits = std::any_of(held_.begin(), held_.end(), [&](const auto& entry) {
      return entry.second.to == parcel.to && entry.second.channel == parcel.channel;
    });
    if (delay.count() == 0 && !flow_waits) return false;
    flow_is_free = due;
    held_.emplace(due, std::move(parcel));
    changed_.notify_all();
    return true;
  }

  bool wait_empty(Deadline deadline) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, deadline, [&] { return held_.empty(); });
  }

 private:
  void run(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (!stop.stop_requested()) {
      if (held_.empty()) {
        changed_.wait(lock, stop, [&] { return !held_.empty(); });
        continue;
      }
      const auto first = held_.begin();
      if (const auto due = first->first; due > Clock::now()) {
        changed_.wait_until(lock, stop, due, [&] { return held_.begin()->first < due; });
        continue;
      }
      // Sent under the lock, so that nothing of the same flow can overtake it.
      inner_.send(first->second.to, first->second.channel, std::move(first->second.sealed));
      held_.erase(first);
      changed_.notify_all();
    }
  }

  Transport& inner_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::multimap<Deadline, Parcel> held_;  // equal times keep their order
  std::map<std::pair<int, Channel>, Deadline> free_at_;
  std::jthread thread_;  // last: it uses all of the above
};

class FaultyTransport final : public Transport {
 public:
  FaultyTransport(std::unique_ptr<Transport> inner, std::vector<Fault> script, std::uint64_t seed)
      : inner_(std::move(inner)), script_(std::move(script)), seed_(seed), seen_(script_.size()) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& host(int rank) const override { return inner_->host(rank); }

  void send(int to, Channel channel, std::vector<std::byte> payload) override {
    // One lock over numbering and queueing, as in every transport.
    const std::lock_guard lock(mutex_);
    bool dropped = false;
    bool corrupted = false;
    std::uint64_t position = 0;
    std::chrono::milliseconds delay{0};
    for (std::size_t i = 0; i < script_.size(); ++i) {
      const Fault& fault = script_[i];
      if (fault.kind == Fault::Kind::kFailReceive) continue;
      if (fault.to.value_or(to) != to || !strikes(i, channel)) continue;
      switch (fault.kind) {
        case Fault::Kind::kDrop:
          dropped = true;
          break;
        case Fault::Kind::kDelay:
          delay += fault.delay;
          break;
        case Fault::Kind::kCorrupt:
          corrupted = true;
          position = draw(~seed_, i, static_cast<std::uint64_t>(seen_[i]));
          break;
        case Fault::Kind::kSilence:
          silent_ = true;
          break;
        case Fault::Kind::kFailReceive:
          break;
      }
    }
    if (dropped || silent_) return;

    Parcel parcel{to, channel, seal(header_for(to, channel, payload), payload)};
    if (corrupted) parcel.sealed[position % parcel.sealed.size()] ^= std::byte{1};
    if (!delays_.hold(parcel, delay)) inner_->send(to, channel, std::move(parcel.sealed));
  }

  std::optional<Message> receive(Channel channel, Deadline deadline) override {
    {
      const std::lock_guard lock(mutex_);
      for (std::size_t i = 0; i < script_.size(); ++i)
        if (script_[i].kind == Fault::Kind::kFailReceive && strikes(i, channel))
          throw Error(ErrorKind::kPeerLost,
                      fmt::format("rank {} lost its peers (injected fault)", rank()));
    }
    auto message = inner_->receive(channel, deadline);
    if (!message) return std::nullopt;
    const auto header = decode_wire_header(message->payload);
    message->payload.erase(message->payload.begin(), message->payload.begin() + kWireHeaderBytes);
    check_payload(header, message->payload);
    return message;
  }

  bool flush(Deadline deadline) override {
    return delays_.wait_empty(deadline) && inner_->flush(deadline);
  }
  [[noreturn]] void abort(int code) override {
    inner_->abort(code);
    std::abort();  // never reached; g++ 12 forgets [[noreturn]] on virtual calls
  }
  void finalize() override { inner_->finalize(); }

 private:
  // Counts one event of `channel` for fault `i`; whether the fault strikes it. Needs the lock.
  bool strikes(std::size_t i, Channel channel) {
    const Fault& fault = script_[i];
    if (fault.channel.value_or(channel) != channel) return false;
    const std::int64_t number = seen_[i]++;
    if (number < fault.first || number - fault.first >= fault.count) return false;
    const auto roll = draw(seed_, i, static_cast<std::uint64_t>(number));
    return static_cast<double>(roll >> 11) * 0x1p-53 < fault.probability;
  }

  WireHeader header_for(int to, Channel channel, std::span<const std::byte> payload) const {
    return {.channel = channel,
            .source = static_cast<std::uint32_t>(rank()),
            .destination = static_cast<std::uint32_t>(to),
            .payload_bytes = payload.size(),
            .payload_checksum = xxh3(payload)};
  }

  const std::unique_ptr<Transport> inner_;
  const std::vector<Fault> script_;
  const std::uint64_t seed_;
  std::mutex mutex_;
  std::vector<std::int64_t> seen_;  // events that fault i has counted
  bool silent_ = false;
  DelayLine delays_{*inner_};
};

}  // namespace

std::unique_ptr<Transport> make_faulty(std::unique_ptr<Transport> inner, std::vector<Fault> script,
                                       std::uint64_t seed) {
  return std::make_unique<FaultyTransport>(std::move(inner), std::move(script), seed);
}

}  // namespace stagecoach
