// How a rank makes sure that an aborted job ends, when MPI_Abort is not enough. On a cut network mpirun
// waits for the daemons that it cannot reach any more, and they wait for mpirun: for a quarter of an
// hour, until TCP gives up.
#pragma once

#include <chrono>

namespace stagecoach {

// Leaves a small process behind that looks after this process's parent, only where that is a launcher of
// Open MPI (mpirun, orted, prted), never a shell or slurmstepd. Connections on which the launcher waits in
// vain are shut, after which it ends with the job's code by itself; if it still runs `patience` from now,
// it is killed, and ends with 137. Returns at once. Does nothing where the kernel has no pidfd_open
// (before Linux 5.3).
void start_launcher_guard(std::chrono::milliseconds patience);

// Ends this process with `code`: runs no destructors, waits for nobody.
[[noreturn]] void end_process(int code);

}  // namespace stagecoach
