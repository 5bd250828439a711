// A copy of a small file of a running job, of which its host may be lost.
#pragma once

#include <atomic>
#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "launcher/agent_client.h"

namespace stagecoach {

class TokenMirror {
 public:
  // Looks once a second, until this goes.
  TokenMirror(Endpoint agent, const Key& key, std::string name, std::string job, std::string file);
  ~TokenMirror();

  std::optional<std::vector<std::byte>> latest() const;

 private:
  void run();
  void look(AgentClient& client);

  const Endpoint agent_;
  const Key key_;
  const std::string name_, job_, file_;
  mutable std::mutex mutex_;
  std::optional<std::vector<std::byte>> latest_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace stagecoach
