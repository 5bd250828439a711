#include "pipeline/peer_watch.h"

#include <algorithm>
#include <utility>

namespace stagecoach {
namespace {

constexpr std::chrono::milliseconds kLook{100};
// What others have to report a failed transport with what they were waiting for.
constexpr std::chrono::milliseconds kGrace{1000};

}  // namespace

PeerWatch::PeerWatch(Transport& transport, const PeerWatchOptions& options, Events events)
    : transport_(transport), options_(options), events_(std::move(events)) {
  if (transport.size() > 1) thread_ = std::thread([this] { run(); });
}

PeerWatch::~PeerWatch() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void PeerWatch::run() {
  try {
    beat_and_listen();
  } catch (const std::exception& exception) {
    const Deadline end = Clock::now() + kGrace;
    while (!stop_ && Clock::now() < end) std::this_thread::sleep_for(kLook);
    if (stop_) return;
    const auto* error = dynamic_cast<const Error*>(&exception);
    events_.failed(error != nullptr ? *error : Error(ErrorKind::kInternal, exception.what()));
  }
}

void PeerWatch::beat_and_listen() {
  std::vector<Deadline> last_heard(static_cast<std::size_t>(transport_.size()), Clock::now());
  Deadline next_beat = Clock::now();
  Deadline last_look = next_beat;
  while (!stop_) {
    const Deadline now = Clock::now();
    if (now >= next_beat) {
      for (int peer = 0; peer < transport_.size(); ++peer)
        if (peer != transport_.rank()) transport_.send(peer, Channel::kHeartbeat, {});
      next_beat = now + options_.interval;
    }
    while (auto message =
               transport_.receive(Channel::kHeartbeat, std::min(next_beat, now + kLook))) {
      last_heard[static_cast<std::size_t>(message->source)] = Clock::now();
      if (stop_) return;
    }
    // A rank that was stopped or starved itself has not listened: that says nothing of its peers.
    if (Clock::now() - last_look > options_.silence / 2)
      std::fill(last_heard.begin(), last_heard.end(), Clock::now());
    last_look = Clock::now();
    check(last_heard);
  }
}

void PeerWatch::check(const std::vector<Deadline>& last_heard) {
  const Deadline now = Clock::now();
  const auto silent = [&](int peer) {
    return peer != transport_.rank() &&
           now - last_heard[static_cast<std::size_t>(peer)] > options_.silence;
  };
  for (int peer = 0; peer < transport_.size(); ++peer) {
    if (!silent(peer)) continue;
    int reporter = 0;
    while (reporter < transport_.rank() && silent(reporter)) ++reporter;
    stop_ = true;
    const std::chrono::duration<double> seconds = now - last_heard[static_cast<std::size_t>(peer)];
    events_.lost(peer, seconds.count(), reporter == transport_.rank());
    return;
  }
}

}  // namespace stagecoach
