// Heartbeats: slow is not dead. A thread of its own tells every peer that this rank lives, whatever the
// rank is computing or reading, and notices who has stopped saying so.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "transport/transport.h"

namespace stagecoach {

struct PeerWatchOptions {
  std::chrono::milliseconds interval{500};
  std::chrono::milliseconds silence{8000};  // longer than this: lost
};

class PeerWatch {
 public:
  // `lost(peer, seconds of silence, reporter)` is called once, on the watching thread: `reporter` says
  // whether this rank is the one that should tell the user (the lowest that still hears from itself).
  // It is expected to end the process.
  using Lost = std::function<void(int peer, double seconds, bool reporter)>;
  PeerWatch(Transport& transport, const PeerWatchOptions& options, Lost lost);
  ~PeerWatch();

 private:
  void run();
  void check(std::vector<Deadline>& last_heard);

  Transport& transport_;
  PeerWatchOptions options_;
  Lost lost_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stagecoach
