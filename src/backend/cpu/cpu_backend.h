#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace stagecoach {

struct BackendOptions {
  int threads = 1;
  std::string isa;  // force one ("avx2"); empty: the best that this processor runs
  std::vector<int> cpus =
      {};  // processors that threads keep to, one each; empty: as the system likes
};

// Threads: options.threads workers in all, the caller being one of them. ISA: options.isa, else
// STAGECOACH_ISA, else the best. Throws usage_error when the forced one cannot run here.
std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

// Processors that this process may use (affinity mask and cgroup quota), at least 1.
int allowed_cpus();

// Of those, one for each of `threads` compute threads of the rank `rank_here` of `ranks_here` on
// this host, and no other rank's. Empty where the ranks together do not want exactly what this
// process may use: the system then places threads better than a list that knows nothing of its
// other work.
std::vector<int> own_cpus(int threads, int rank_here, int ranks_here);

}  // namespace stagecoach
