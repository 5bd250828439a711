#pragma once

#include <atomic>

namespace stagecoach {

// Set by SIGINT and SIGTERM; whoever loops looks at it and stops in order. A second signal ends the
// process at once with code 130.
extern std::atomic<bool> interrupt_requested;

void install_signal_handlers();

}  // namespace stagecoach
