#include "base/module.h"
#include "base/version.h"
#include "transport/mpi/mpi_transport.h"
#include "transport/mpi_module.h"

stagecoach::Transport* stagecoach_open_mpi_transport_v2(const char* build) {
  stagecoach::check_same_build("MPI", STAGECOACH_BUILD, build);
  return new stagecoach::MpiTransport();
}
