// What mpirun needs to reach a launch's hosts through their agents: a file that only this user
// reads.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "launcher/key.h"
#include "launcher/processes.h"

namespace stagecoach {

struct SessionHost {
  std::string name;     // in messages
  std::string address;  // as mpirun calls it
  std::uint16_t port = 0;
  std::string job;  // of its processes
};

struct LaunchSession {
  Key key;
  std::vector<SessionHost> hosts;
};

void write_session(const std::filesystem::path& file, const LaunchSession& session);
// Throws data_error.
LaunchSession read_session(const std::filesystem::path& file);

// In ssh's place: `words` on the host of that address. The exit code.
int run_daemon_of_session(const std::filesystem::path& file, const std::string& address,
                          const Words& words);

}  // namespace stagecoach
