// From a job file to results: reaches the hosts, plans, ships slabs and builds, runs mpirun, and
// goes on without a host that is lost.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "launcher/agent_client.h"
#include "launcher/job_file.h"
#include "plan/planner.h"

namespace stagecoach {

struct LaunchOptions {
  bool dry_run = false;         // plan and command, and nothing else
  bool json = false;            // of a dry run
  bool quiet = false;           // ranks say no more than they must
  std::filesystem::path state;  // for files of this launch
  bool terminal = false;        // stderr is one
  std::int64_t text_bytes = 0;  // of what a score reads

  // The plan for hosts whose memory and rates are known.
  std::function<ClusterPlan(const Manifest&, const ClusterSpec&)> plan;
  // What `probe` has measured on this machine; null: nothing.
  std::function<std::optional<HostRates>(const std::string& store)> own_rates;
  std::function<bool()> interrupted;
  std::function<void(std::string_view)> out, err;
  std::function<void(std::string_view)> messages;  // of the ranks
  std::function<void(const std::string&)> note;    // a step, for people who watch
  std::function<void(const std::string&)> warn;
  Report shipping;
};

// The exit code of the ranks; what keeps them from running, or ends them from outside, is thrown.
int launch(const LaunchJob& job, const LaunchOptions& options);

}  // namespace stagecoach
