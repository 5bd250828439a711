// The daemon of a PC in the cluster: answers doctor's questions, moves slabs from host to host,
// starts and ends the ranks of launched jobs. docs/launcher.md has the protocol and what it trusts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launcher/key.h"
#include "launcher/secure_channel.h"

namespace stagecoach {

// What the program around the agent knows of its machine.
struct HostServices {
  std::function<std::string()> isa;  // the best kernels here
  std::function<std::int64_t()> free_memory;
  // Direct reads of the store's disk, measured now, bytes a second; 0 where they cannot be. Ends
  // early when nobody waits for it any more.
  std::function<double(const std::filesystem::path& store, const Interrupted&)> disk_rate;
  // Runs `probe`, some seconds, which keeps what it finds. Throws resource_error, kInterrupted.
  std::function<void(const std::filesystem::path& store, const Interrupted&)> probe;
};

struct AgentConfig {
  Key key;
  Endpoint listen{.address = "0.0.0.0"};
  std::vector<std::filesystem::path>
      stores;                   // folders in which stores lie, and nothing else is touched
  std::filesystem::path state;  // for jobs and builds of launches
  double bytes_per_second = 0;  // that it sends of slabs, at most; 0: no limit
  HostServices services;
};

class Agent {
 public:
  // Throws usage_error or resource_error.
  explicit Agent(AgentConfig config);
  ~Agent();

  std::uint16_t port() const;
  // Serves until `stop` says so.
  void run(const std::function<bool()>& stop);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// ${XDG_STATE_HOME:-$HOME/.local/state}/stagecoach and
// ${XDG_DATA_HOME:-$HOME/.local/share}/stagecoach; empty where neither is set.
std::filesystem::path default_state_folder();
std::filesystem::path default_store_folder();

}  // namespace stagecoach
