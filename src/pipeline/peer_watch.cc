#include "pipeline/peer_watch.h"

#include "base/error.h"
#include "base/log.h"

namespace stagecoach {

PeerWatch::PeerWatch(Transport& transport, const PeerWatchOptions& options, Lost lost)
    : transport_(transport), options_(options), lost_(std::move(lost)) {
  if (transport.size() > 1) thread_ = std::thread([this] { run(); });
}

PeerWatch::~PeerWatch() {
  stop_ = true;
  if (thread_.joinable()) thread_.join();
}

void PeerWatch::run() {
  std::vector<Deadline> last_heard(static_cast<std::size_t>(transport_.size()), Clock::now());
  Deadline next_beat = Clock::now();
  Deadline last_look = next_beat;
  while (!stop_) {
    const Deadline now = Clock::now();
    try {
      if (now >= next_beat) {
        for (int peer = 0; peer < transport_.size(); ++peer)
          if (peer != transport_.rank()) transport_.send(peer, Channel::kHeartbeat, {});
        next_beat = now + options_.interval;
      }
      while (auto message = transport_.receive(Channel::kHeartbeat, std::min(next_beat, now + std::chrono::milliseconds(100)))) {
        last_heard[static_cast<std::size_t>(message->source)] = Clock::now();
        if (stop_) return;
      }
    } catch (const Error& error) {
      // The transport itself has failed; whoever waits for data will say so with more context.
      spdlog::debug("heartbeats end: {}", error.what());
      return;
    }
    // A rank that was stopped or starved itself has not listened: that says nothing of its peers.
    if (Clock::now() - last_look > options_.silence / 2) std::fill(last_heard.begin(), last_heard.end(), Clock::now());
    last_look = Clock::now();
    check(last_heard);
  }
}

void PeerWatch::check(std::vector<Deadline>& last_heard) {
  const Deadline now = Clock::now();
  const auto silent = [&](int peer) {
    return peer != transport_.rank() && now - last_heard[static_cast<std::size_t>(peer)] > options_.silence;
  };
  for (int peer = 0; peer < transport_.size(); ++peer) {
    if (!silent(peer)) continue;
    int reporter = 0;
    while (reporter < transport_.rank() && silent(reporter)) ++reporter;
    stop_ = true;
    const std::chrono::duration<double> seconds = now - last_heard[static_cast<std::size_t>(peer)];
    lost_(peer, seconds.count(), reporter == transport_.rank());
    return;
  }
}

}  // namespace stagecoach
