// The file that `launch` and `doctor` take: [launch], [run], [nodes.NAME], [network].
// docs/launcher.md has the keys.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "launcher/processes.h"
#include "plan/cluster_spec.h"

namespace stagecoach {

struct LaunchJob {
  std::string file;
  std::string command = "generate";  // or score, time
  std::string key;                   // file of the agents' key; empty: hosts are reached by ssh
  Words ssh;                         // {"ssh", "-p", "2222"}
  std::uint16_t port = 0;            // of the agents
  int replicas = 1;                  // hosts that have a slab
  int restarts = 3;                  // after lost hosts or ranks, at most
  ClusterSpec cluster;
  // [run], keys with their values, sorted, as the file has them.
  std::vector<std::pair<std::string, std::vector<std::string>>> run;
  std::map<std::string, std::string> run_places;  // of these keys: "job.toml:5:11: cpu_layers"

  // Of a key of [run] that has one value; empty: it is not there. ~ is this user's home.
  std::string run_value(const std::string& name) const;
  // What a message about a key of [run] begins with.
  std::string run_place(const std::string& name) const;
  // Where a host's store is: an absolute path, or one in the home of the host's agent, "~/…".
  std::string store_of(const HostSpec& host) const;
};

// Throws usage_error with file, line and column for an unknown key or a value that makes no sense.
LaunchJob read_launch_job(const std::string& file);

}  // namespace stagecoach
