// The mpirun of a launched job: one rank a host, in the order of the plan, each with its own paths.
#pragma once

#include <string>
#include <vector>

#include "launcher/host_facts.h"
#include "launcher/job_file.h"
#include "plan/stage_plan.h"

namespace stagecoach {

struct RankPlace {
  std::string address;  // as mpirun calls the host
  std::string binary, store;
  const HostFacts* facts = nullptr;  // whose home ~ is in other paths; null: not reached, ~ stays
  std::int64_t memory = 0;
  std::int64_t device_memory = 0;
  std::vector<std::string> extra;  // flags of this rank alone
};

struct MpiJob {
  const LaunchJob& job;
  const StagePlan& plan;
  std::vector<RankPlace> ranks;
  std::string network;   // "192.168.1.0/24"; empty: one host
  std::string shell;     // what mpirun calls to reach hosts; empty: ssh
  bool as_root = false;  // the user has allowed Open MPI to run as root
};

// Open MPI 4.1 and 5 take the same words: the names of the settings are those of 4.1, which 5
// translates.
// Throws usage_error where a path is in the home of a user who has none.
Words mpi_command(const MpiJob& job);

// One rank's own words: the command and its flags.
Words rank_command(const MpiJob& job, std::size_t rank);

// For people who run mpirun by hand: a line for each host, and for each rank.
std::string hostfile(const MpiJob& job);
std::string rankfile(const MpiJob& job);

// The setting of [run] whose file is read on the launching machine and handed to rank 0's stdin;
// null: there is none.
const char* stdin_setting(const LaunchJob& job);

}  // namespace stagecoach
