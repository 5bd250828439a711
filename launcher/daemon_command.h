// What mpirun asks of its remote shell: to start its daemon there. Read here without a shell, so
// that nothing else can be started.
#pragma once

#include <string>

#include "launcher/processes.h"

namespace stagecoach {

struct DaemonCommand {
  Environment environment;  // NAME=value
  Words words;              // orted (Open MPI 4) or prted (5), and its arguments
};

// "NAME=value;export NAME;…;/opt/openmpi/bin/prted --prtemca ess \"env\" …": assignments, in which
// $NAME stands for what the agent's environment has, then the daemon and words that may be quoted.
// Throws usage_error for anything else.
DaemonCommand parse_daemon_command(const std::string& text);

}  // namespace stagecoach
