// The hosts of a job as the launcher reaches them: each through an agent, one that runs there or
// one that the launcher has started by ssh.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "launcher/agent_client.h"
#include "launcher/job_file.h"
#include "launcher/temporary_agent.h"

namespace stagecoach {

struct Host {
  HostSpec spec;
  std::string store;  // its path there
  Endpoint agent;
  bool here = false;                          // it is this machine
  std::unique_ptr<TemporaryAgent> temporary;  // null: one was running
  std::unique_ptr<AgentClient> client;        // null: it could not be reached
  HostFacts facts;
  std::optional<Error> problem;  // why it could not, or what went wrong since
  bool lost = false;             // during a job, which goes on without it

  const std::string& name() const { return spec.name; }
  bool reached() const { return client != nullptr && !problem && !lost; }
};

struct HostsOptions {
  std::filesystem::path state = {};  // of this machine's own agent; empty: as of any
  Interrupted interrupted = {};
};

class Hosts {
 public:
  // Reaches all of them at once, and asks each for its facts; this machine, too, whether or not it
  // is one of them, with the store of [run] as a source of slabs. Throws what keeps that from being
  // looked at, and kInterrupted.
  Hosts(const LaunchJob& job, const HostsOptions& options);
  Hosts(const Hosts&) = delete;
  Hosts& operator=(const Hosts&) = delete;
  ~Hosts();

  const Key& key() const { return key_; }
  std::vector<Host>& all() { return hosts_; }  // those of the file, in its order
  const Host& at(std::size_t host) const { return hosts_[host]; }
  std::size_t count() const { return hosts_.size(); }
  // This machine with the store of [run]: one of all() if that is its store as a host, else a host
  // of its own that no rank runs on.
  Host& source() { return source_ ? *source_ : hosts_[source_index_]; }
  const Host& source() const { return source_ ? *source_ : hosts_[source_index_]; }

  // `work` for every host that can be reached, at once. What it throws becomes the host's problem,
  // but for kInterrupted, which is thrown on: that is no host's.
  void each(const std::function<void(Host&)>& work);
  // A new connection to each that is reached; one that cannot be had is that host's problem. Throws
  // kInterrupted.
  void reconnect();
  // One error for all of their problems. Nothing where there are none.
  void throw_problems(const std::string& what) const;

 private:
  void let_go();
  void throw_interrupt() const;

  Key key_;
  Interrupted interrupted_;
  std::vector<Host> hosts_;
  std::optional<Host> source_;
  std::size_t source_index_ = 0;
};

}  // namespace stagecoach
