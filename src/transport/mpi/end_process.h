// How a rank makes sure that an aborted job ends, when MPI_Abort is not enough. On a cut network
// mpirun waits for the daemons that it cannot reach any more, and they wait for mpirun: for a
// quarter of an hour, until TCP gives up.
#pragma once

#include <chrono>

namespace stagecoach {

// What has started this process: mpirun, its daemon on another host (orted, prted), or something
// that is not ours to end, such as a shell or slurmstepd.
enum class Launcher { kNone, kMpirun, kDaemon };
Launcher parent_launcher();

struct GuardLimits {
  std::chrono::milliseconds cut_off;    // for a launcher that has lost another host
  std::chrono::milliseconds otherwise;  // for one that works, and may have many ranks to end
};

// Leaves a small process behind that looks after our parent, only where that is a launcher of Open
// MPI (mpirun, orted and their like), never a shell or slurmstepd. Its connections to hosts that do
// not answer are shut, after which it can end with the job's code by itself; if it runs beyond its
// limit, it is killed, and ends with 137. Returns at once. Does nothing where the kernel has no
// pidfd_open (before Linux 5.3).
void start_launcher_guard(const GuardLimits& limits);

// Ends this process with `code`: runs no destructors, waits for nobody.
[[noreturn]] void end_process(int code);

}  // namespace stagecoach
