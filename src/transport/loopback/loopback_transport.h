// Ranks that are threads of one process: pipelines are tested on them, and a single-process run is
// one of size 1.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "transport/transport.h"

namespace stagecoach {

// What abort(code) of `rank` does instead of ending the process. Must not return (tests throw).
using AbortHandler = std::function<void(int rank, int code)>;

// The endpoints of ranks 0 to size - 1, each for one thread or process-wide use as any Transport.
// Aborting, or destroying an endpoint before its finalize, fails the others as a lost peer would.
std::vector<std::unique_ptr<Transport>> make_loopback(int size, AbortHandler on_abort = {});

}  // namespace stagecoach
