#include "transport/mpi/mpi_transport.h"
#include "transport/mpi_module.h"

stagecoach::Transport* stagecoach_open_mpi_transport_v1() {
  return new stagecoach::MpiTransport();
}
