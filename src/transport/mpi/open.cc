#include <string_view>

#include "base/error.h"
#include "base/version.h"
#include "transport/mpi/mpi_transport.h"
#include "transport/mpi_module.h"

stagecoach::Transport* stagecoach_open_mpi_transport_v2(const char* build) {
  // Both sides of the seam are C++, and change together.
  if (const std::string_view mine = STAGECOACH_BUILD; build != mine)
    throw stagecoach::resource_error(
        fmt::format("the MPI module is of build {}, this binary of {}", mine, build),
        "copy lib/stagecoach from where the binary was built, beside its bin");
  return new stagecoach::MpiTransport();
}
