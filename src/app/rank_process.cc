#include "app/rank_process.h"

#include <cstdint>
#include <cstdlib>
#include <thread>
#include <utility>

#include "app/last_word.h"
#include "app/output.h"
#include "base/log.h"
#include "transport/loopback/loopback_transport.h"
#include "transport/mpi_module.h"

namespace stagecoach {

std::unique_ptr<Transport> open_transport() {
  if (launched_size() > 1) return open_mpi_transport();
  return std::move(make_loopback(1).front());
}

std::string name_of(const Transport& transport, int rank) {
  return transport.size() == 1 ? "" : fmt::format("rank {} on {}", rank, transport.host(rank));
}

void setup_rank_logging(const Transport& transport, bool quiet, bool verbose) {
  const int rank = transport.rank();
  setup_logging(verbose             ? Verbosity::kVerbose
                : quiet || rank > 0 ? Verbosity::kQuiet
                                    : Verbosity::kNormal,
                name_of(transport, rank));
}

std::unique_ptr<PeerWatch> watch_peers(Transport& transport, double timeout_seconds,
                                       std::function<std::string(int)> describe) {
  PeerWatch::Events events;
  events.lost = [&transport, describe = std::move(describe)](int peer, double seconds,
                                                             bool reporter) {
    if (reporter) {
      const std::string problem = fmt::format(
          "{}{} has been silent for {:.1f} s: it was stopped, lost its network, or its host is "
          "down",
          name_of(transport, peer), describe(peer), seconds);
      print_error(
          Error(ErrorKind::kPeerLost, problem, "check that host, then run the same command again"),
          "");
    } else {
      std::this_thread::sleep_for(std::chrono::seconds(1));  // the reporter's message first
    }
    transport.abort(static_cast<int>(ErrorKind::kPeerLost));
  };
  events.failed = [&transport](const Error& error) { end_for_all(transport, error, ""); };
  PeerWatchOptions options;
  options.silence = std::chrono::milliseconds(static_cast<std::int64_t>(timeout_seconds * 1000));
  return std::make_unique<PeerWatch>(transport, options, std::move(events));
}

void end_for_all(Transport& transport, const Error& error, const std::string& job) {
  // Who pressed Ctrl-C knows; and mpirun sends the same signal to the ranks of a job that failed
  // elsewhere.
  if (error.kind() != ErrorKind::kInterrupted)
    print_error(error, (job.empty() ? "" : job + ": ") + name_of(transport, transport.rank()));
  leave_abort_word(error.exit_code());
  transport.abort(error.exit_code());
  std::_Exit(error.exit_code());  // not reached; g++ does not see that abort is noreturn through
                                  // the interface
}

void finalize(Transport& transport) {
  try {
    transport.finalize();
  } catch (const Error& error) {
    if (transport.size() == 1) throw;
    end_for_all(transport, error, "");
  }
}

}  // namespace stagecoach
