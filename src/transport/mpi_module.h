// The way to MPI without <mpi.h>: the MPI transport is a module that is opened at run time, so that
// the binary starts on a PC without Open MPI.
#pragma once

#include <memory>
#include <optional>

#include "transport/transport.h"

// The module's one symbol. Starts MPI; the caller owns the result. Throws Error.
// `build`: of the binary.
extern "C" stagecoach::Transport* stagecoach_open_mpi_transport_v2(const char* build);

namespace stagecoach {

// Starts MPI and returns when all ranks have. Once per process. Throws resource_error when the
// module cannot be opened, or is of another build.
std::unique_ptr<Transport> open_mpi_transport();

// Where a launcher (mpirun, srun) has placed this process, from its environment, before MPI starts.
// Without a launcher: false, 0, 1. Throws usage_error on variables that make no sense.
bool launched_by_mpi();
int launched_rank();
int launched_size();
int launched_local_size();  // ranks on this host; all of them where the launcher does not say
// Which of them this process is, from 0; nullopt where the launcher does not say.
std::optional<int> launched_local_rank();

}  // namespace stagecoach
