// How a rank makes sure that an aborted job ends, when MPI_Abort is not enough. On a cut network mpirun
// waits for the daemons that it cannot reach any more, and they wait for mpirun: for a quarter of an
// hour, until TCP gives up.
#pragma once

#include <chrono>

namespace stagecoach {

// Leaves a small process behind which kills this process's parent unless that ends within `limit`; only
// where the parent is a launcher of Open MPI (mpirun, orted, prted), never a shell or slurmstepd. The
// launcher then ends with 137 instead of our code. Returns at once; does nothing where the kernel has no
// pidfd_open (before Linux 5.3).
void end_stuck_launcher_after(std::chrono::milliseconds limit);

// Ends this process with `code`: runs no destructors, waits for nobody.
[[noreturn]] void end_process(int code);

}  // namespace stagecoach
