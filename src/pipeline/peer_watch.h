// Heartbeats: slow is not dead. A thread of its own tells every peer that this rank lives, whatever
// the rank is computing or reading, and notices who has stopped saying so.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "transport/transport.h"

namespace stagecoach {

struct PeerWatchOptions {
  std::chrono::milliseconds interval{500};
  std::chrono::milliseconds silence{6000};  // longer than this: lost
};

class PeerWatch {
 public:
  // Called once at most, on the watching thread, and expected to end the process.
  struct Events {
    // `reporter`: this rank is the one that should tell the user (the lowest that is not silent).
    std::function<void(int peer, double seconds, bool reporter)> lost;
    // The transport has failed, and whoever waits for data has had a second to say so with more
    // context.
    std::function<void(const Error&)> failed;
  };
  PeerWatch(Transport& transport, const PeerWatchOptions& options, Events events);
  ~PeerWatch();

 private:
  void run();
  void beat_and_listen();
  void check(const std::vector<Deadline>& last_heard);

  Transport& transport_;
  PeerWatchOptions options_;
  Events events_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stagecoach
