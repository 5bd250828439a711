// Looks at every host of a job and says what would keep it from running, and how to mend that.
// Changes nothing.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "launcher/hosts.h"
#include "launcher/job_file.h"

namespace stagecoach {

struct Finding {
  std::string host;  // empty: of the cluster
  std::string text, fix;
  ErrorKind kind = ErrorKind::kResources;
  bool serious = true;  // it keeps the job from running; else it makes it slow or is worth knowing
};

struct LinkFinding {
  std::string from, to;
  LinkRate rate;
};

struct HostExam {
  std::string host, address, store;
  bool reached = false;
  HostFacts facts;
  double clock_offset = 0;  // seconds, theirs minus ours
  double disk_rate = 0;     // bytes a second
  std::int64_t free_disk = 0;
  std::int64_t slabs = 0, slabs_wanted = 0;  // in its store's folder, of the whole model
  std::int64_t damaged = 0;
};

struct DoctorReport {
  std::vector<HostExam> hosts;
  std::vector<LinkFinding> links;
  std::vector<Finding> findings;

  // 0, or that of the first serious finding.
  int exit_code() const;
};

struct DoctorOptions {
  bool verify = true;   // read every slab
  bool measure = true;  // disks and links
  std::function<void(const std::string& step)> progress = {};
  Interrupted interrupted = {};
};

DoctorReport examine(const LaunchJob& job, const DoctorOptions& options);

// What launch refuses, too: hosts that cannot work together. `hosts` have been reached; `source` is
// the machine that launches.
std::vector<Finding> check_together(const std::vector<const Host*>& hosts, const Host& source,
                                    const LaunchJob& job);

// The network that all hosts' addresses are in, "192.168.1.0/24"; empty: there is none.
std::string common_network(const std::vector<const Host*>& hosts);

Json to_json(const DoctorReport& report);
std::string as_text(const DoctorReport& report);

}  // namespace stagecoach
