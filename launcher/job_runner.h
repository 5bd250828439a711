// A planned job on hosts that have all they need: mpirun, and what it takes to go on when it fails.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/file_lock.h"
#include "launcher/distribution.h"
#include "launcher/host_watch.h"
#include "launcher/hosts.h"
#include "launcher/launch.h"
#include "launcher/mpi_command.h"
#include "launcher/pass_room.h"
#include "launcher/rank_count.h"
#include "launcher/relay.h"
#include "plan/stage_plan.h"

namespace stagecoach {

struct PlannedJob {
  std::string name;  // of its files and processes
  StagePlan stages;
  std::vector<std::size_t> ranks;     // their hosts, in Hosts::all()
  std::vector<std::string> binaries;  // by host
  std::string network;                // that MPI keeps to
};

class JobRunner {
 public:
  JobRunner(const LaunchJob& job, const LaunchOptions& options, Hosts& hosts, Model& model,
            PlannedJob planned);
  // Removes the job's files everywhere, as far as hosts answer.
  ~JobRunner();
  JobRunner(const JobRunner&) = delete;
  JobRunner& operator=(const JobRunner&) = delete;

  const PlannedJob& planned() const { return planned_; }
  // What would be run, without what only a running job has.
  MpiJob mpi_job() const;
  // Rank by rank turned to host by host.
  std::vector<SlabNames> by_host(const std::vector<SlabNames>& by_rank) const;

  // The job's exit code. Throws kPeerLost when it cannot go on, kInterrupted.
  int run();

 private:
  struct Outcome {
    int code = 0;
    std::vector<std::size_t> lost_hosts;  // in all(), in the order in which they were missed
    std::string reason;                   // of the first
    bool rank_lost = false;               // a rank, of a host that answers
    bool explained = false;               // Open MPI knows no better
    bool hung = false;                    // mpirun, which had no rank any more

    bool lost() const { return rank_lost || !lost_hosts.empty(); }
  };

  // Of rank 0: how the job ended, and what it has printed until then.
  struct LastWord {
    int code = 0;
    std::int64_t printed = 0;  // bytes
  };

  Outcome run_once();
  Outcome run_ranks();
  Outcome follow(Child& mpirun, const HostWatch& watch, const RankCount& ranks);
  bool relay_some(Child& mpirun);
  bool is_hung(const HostWatch& watch, const RankCount& ranks, Outcome& outcome) const;
  void settle(Outcome& outcome, Child& mpirun, const HostWatch& watch);
  void judge(Outcome& outcome, const HostWatch& watch);
  bool all_answer();
  std::optional<LastWord> last_word(const HostWatch& watch) const;
  std::optional<int> abort_code() const;
  bool all_printed(Child& mpirun, std::int64_t bytes);
  void take_lost(Outcome& outcome, const HostWatch& watch);
  void take_unreached(Outcome& outcome);
  void name_lost(Outcome& outcome, std::size_t host, const std::string& reason);
  void end_everywhere(Child& mpirun);
  void recover(Outcome outcome);
  void supply_heirs(Outcome& outcome);
  Error stopped(const Outcome& outcome) const;
  void collect_report();

  MpiJob placed_job();
  void place_tokens();
  std::vector<WatchedHost> with_ranks() const;
  std::vector<WatchedHost> watched() const;
  void write_files(const MpiJob& mpi);

  Host& host_of(std::size_t rank) { return hosts_.all()[planned_.ranks[rank]]; }
  std::size_t rank_of(std::size_t host) const;
  std::string layers_of(std::size_t host) const;
  // Of the job's files on a host; and of its processes there, other ones in every run: those of the
  // run before may still be ending.
  std::string files_tag(std::size_t host) const;
  std::string run_tag(std::size_t host) const;
  // mpirun's own, and those of ranks that it starts itself.
  std::string own_tag() const;
  std::string done_name() const;  // of files of the run's ranks
  bool keeps_tokens() const { return job_.replicas > 1 && job_.command == "generate"; }
  bool keeps_pass() const;
  void look_for_room(std::size_t host, std::optional<std::int64_t> free_bytes);
  std::filesystem::path folder() const { return options_.state / "launches" / planned_.name; }

  const LaunchJob& job_;
  const LaunchOptions& options_;
  const Grace grace_;
  Hosts& hosts_;
  Model& model_;
  PlannedJob planned_;
  const bool in_rounds_;          // as it was planned; take_over may leave fewer windows
  std::optional<FileLock> lock_;  // of folder()
  OutputRelay output_;
  MessageRelay messages_;
  std::optional<std::vector<std::byte>> tokens_;  // drawn before a restart
  std::optional<std::size_t> tokens_host_;        // which had rank 0 then
  PassRoom room_;
  int runs_ = 0;
};

}  // namespace stagecoach
