// What every command that runs on several ranks does at its ends: joins the others, watches them,
// and leaves in order or, for all, at once.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/error.h"
#include "pipeline/peer_watch.h"
#include "transport/transport.h"

namespace stagecoach {

inline constexpr double kPeerTimeoutSeconds = 6;  // of silence, after which a rank counts as lost

// MPI's under a launcher, else a rank alone.
std::unique_ptr<Transport> open_transport();

// "rank 2 on pc-b"; empty in a process of its own.
std::string name_of(const Transport& transport, int rank);

// Ranks other than 0 only warn, unless `verbose`.
void setup_rank_logging(const Transport& transport, bool quiet, bool verbose);

// `describe(rank)` follows a lost rank's name (its layers); called by the watching thread.
std::unique_ptr<PeerWatch> watch_peers(Transport& transport, double timeout_seconds,
                                       std::function<std::string(int)> describe);

// Others depend on this rank: says what went wrong and ends the job everywhere. `job` is the name
// of the one that failed, or empty.
[[noreturn]] void end_for_all(Transport& transport, const Error& error, const std::string& job);

// The orderly end, of all ranks together.
void finalize(Transport& transport);

}  // namespace stagecoach
