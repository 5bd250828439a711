// How a rank makes sure that an aborted job ends, when MPI_Abort is not enough. On a cut network mpirun
// waits for the daemons that it cannot reach any more, and they wait for mpirun: for a quarter of an
// hour, until TCP gives up.
#pragma once

#include <chrono>

namespace stagecoach {

enum class Launcher { kNone, kMpirun, kDaemon };

// What has started this process: mpirun (orterun, prterun), its daemon on another host (orted, prted), or
// something that is not ours to end, such as a shell or slurmstepd.
Launcher parent_launcher();

// Leaves a small process behind that looks after our launcher. Connections on which it waits in vain are
// shut, after which it ends with the job's code by itself; if it still runs `patience` from now, it is
// killed, and ends with 137. Returns at once. Does nothing without a launcher, or where the kernel has no
// pidfd_open (before Linux 5.3).
void start_launcher_guard(std::chrono::milliseconds patience);

// Ends this process with `code`: runs no destructors, waits for nobody.
[[noreturn]] void end_process(int code);

}  // namespace stagecoach
