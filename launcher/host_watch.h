// Whether the hosts of a running job still answer: a connection to each one's agent, which ends the
// job's processes there when it breaks.
#pragma once

#include <atomic>
#include <future>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "launcher/agent_client.h"

namespace stagecoach {

struct WatchedHost {
  std::string name;
  Endpoint agent;
  std::string job;    // of its processes there
  std::string files;  // the name that its files there go by
};

class HostWatch {
 public:
  // Throws what keeps a host from being watched, kInterrupted. Once it watches, it goes on after an
  // interrupt: what it holds would end at once.
  HostWatch(const std::vector<WatchedHost>& hosts, const Key& key, const Interrupted& interrupted);
  // Lets go of all hosts: their agents end what is left of the job.
  ~HostWatch();

  // Places in the list of those that have fallen silent, in the order in which they did.
  std::vector<std::size_t> lost() const;
  std::string reason(std::size_t host) const;

 private:
  void watch(std::size_t number, const WatchedHost& host, const Key& key,
             const Interrupted& interrupted, std::promise<void>& held);

  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  mutable std::mutex mutex_;
  std::vector<std::pair<std::size_t, std::string>> lost_;
};

}  // namespace stagecoach
