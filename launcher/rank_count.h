// Whether ranks of a running job still run, by what the agents of its hosts count: mpirun may hang
// when none does.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "launcher/agent_client.h"
#include "launcher/host_watch.h"

namespace stagecoach {

class RankCount {
 public:
  // Counts every few seconds, until this goes. Over connections of its own: an agent looks at every
  // process, which may take longer than a host that is watched may be silent.
  RankCount(std::vector<WatchedHost> hosts, const Key& key);
  ~RankCount();

  bool had_ranks() const;
  // For how long no host has had one; nothing while one has, or cannot say.
  Seconds without_ranks() const;

 private:
  void run();
  void take(const std::vector<std::optional<int>>& counts);

  const std::vector<WatchedHost> hosts_;
  const Key key_;
  mutable std::mutex mutex_;
  bool had_ranks_ = false;
  std::optional<Clock::time_point> deserted_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stagecoach
