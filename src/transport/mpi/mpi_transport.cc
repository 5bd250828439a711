#include "transport/mpi/mpi_transport.h"

#include <sys/prctl.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "base/hash.h"
#include "transport/mpi/end_process.h"
#include "transport/mpi/idle_wait.h"
#include "transport/mpi/mpi_api.h"
#include "transport/mpi/mpi_error.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// Generous: mpirun may have to reach slow hosts first.
constexpr std::chrono::seconds kStartLimit{60};
// Ranks come here within moments of one another: they have agreed that nothing is left to do.
constexpr std::chrono::seconds kFinalizeLimit{8};
// What MPI_Abort gets before the watchdog ends this process, and what the launcher gets then. The
// whole job has 10 s, of which a silent peer takes 8 to be noticed. mpirun 4.1 gives its own host's
// ranks SIGCONT, a second, SIGTERM, and up to another second that is wasted when they have ended by
// themselves meanwhile. Daemons do the same once mpirun tells them: there it is best to be gone by
// then.
constexpr std::chrono::milliseconds kAbortLimitUnderMpirun{1200};
constexpr std::chrono::milliseconds kAbortLimit{250};
constexpr GuardLimits kLauncherLimits{.cut_off = std::chrono::milliseconds(1300),
                                      .otherwise = std::chrono::milliseconds(5000)};

}  // namespace

MpiTransport::MpiTransport() {
  std::promise<void> started;
  auto ready = started.get_future();
  comm_thread_ = std::thread(&MpiTransport::run, this, std::move(started));
  try {
    // A rank that was stopped, or exited without a word, before MPI was up: no heartbeat tells of
    // it yet.
    if (ready.wait_for(kStartLimit) != std::future_status::ready) {
      // MPI_Init has not returned, so that there is no transport to abort through and nobody to
      // throw to.
      if (launched_rank() > 0)
        std::this_thread::sleep_for(std::chrono::seconds(2));  // rank 0's exit ends us
      std::fprintf(stderr,
                   "stagecoach: rank %d: not every rank has started MPI within %lld s\n  try: look "
                   "at the other hosts, then run the same command again\n",
                   launched_rank(), static_cast<long long>(kStartLimit.count()));
      end_process(static_cast<int>(ErrorKind::kPeerLost));
    }
    ready.get();
  } catch (...) {
    comm_thread_.join();
    throw;
  }
}

MpiTransport::~MpiTransport() {
  outbox_->request_stop();
  comm_thread_.join();
  // What MPI was not told to finalize it may still write into.
  static_cast<void>(progress_.release());
}

const std::string& MpiTransport::host(int rank) const {
  STAGECOACH_CHECK(0 <= rank && rank < size());
  return topology_.hosts[static_cast<std::size_t>(rank)];
}

void MpiTransport::send(int to, Channel channel, std::vector<std::byte> payload) {
  submit(to, channel, std::move(payload), {});
}

void MpiTransport::send_from_device(int to, Channel channel, std::vector<std::byte> payload,
                                    DeviceBytes end) {
  STAGECOACH_CHECK(to != rank());
  submit(to, channel, std::move(payload), std::move(end));
}

void MpiTransport::submit(int to, Channel channel, std::vector<std::byte> payload,
                          DeviceBytes end) {
  STAGECOACH_CHECK(0 <= to && to < size());
  STAGECOACH_CHECK(payload.size() + end.size <= kMaxPayloadBytes);
  // Checksummed here, in the caller's thread: the comm thread has heartbeats to keep.
  const WireHeader header{.channel = channel,
                          .source = static_cast<std::uint32_t>(rank()),
                          .destination = static_cast<std::uint32_t>(to),
                          .payload_bytes = payload.size() + end.size,
                          .payload_checksum = xxh3(payload),
                          .device_bytes = end.size};
  outbox_->submit(
      {.to = to, .header = header, .payload = std::move(payload), .device_end = std::move(end)});
}

std::optional<Message> MpiTransport::receive(Channel channel, Deadline deadline) {
  return inbox_->pop(channel, deadline);
}

bool MpiTransport::flush(Deadline deadline) {
  return outbox_->wait_until_left(deadline);
}

void MpiTransport::abort(int code) {
  start_launcher_guard(kLauncherLimits);
  outbox_->request_abort(code);
  // This thread is the watchdog: MPI_Abort waits for daemons, and the comm thread may itself be
  // stuck in a call that waits for a peer.
  std::this_thread::sleep_for(parent_launcher() == Launcher::kMpirun ? kAbortLimitUnderMpirun
                                                                     : kAbortLimit);
  end_process(code);
}

void MpiTransport::finalize() {
  outbox_->request_end();
  auto ended = ended_.get_future();
  if (ended.wait_for(kFinalizeLimit) != std::future_status::ready)
    throw Error(ErrorKind::kPeerLost,
                fmt::format("not every rank came to the end of the job within {} s of rank {}",
                            kFinalizeLimit.count(), rank()));
  ended.get();
}

MpiTransport::Topology MpiTransport::start_mpi() {
  // With more ranks than cores mpirun has Open MPI yield in every poll, and next to compute threads
  // each yield costs a time slice of theirs: 2000 small messages took 58 s instead of 1.5 s. We
  // wait by ourselves and never spin long, so it must not.
  ::setenv("OMPI_MCA_mpi_oversubscribe", "0", 1);
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED)
    throw resource_error("this MPI does not allow a process to have threads (MPI_THREAD_FUNNELED)",
                         "install Open MPI 4.1 or newer");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  Topology topology;
  int size = 0;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &topology.rank), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size");
  topology.hosts = exchange_hosts(size);
  return topology;
}

std::vector<std::string> MpiTransport::exchange_hosts(int size) {
  using Name = std::array<char, MPI_MAX_PROCESSOR_NAME + 1>;
  Name mine{};
  int length = 0;
  check_mpi(MPI_Get_processor_name(mine.data(), &length), "MPI_Get_processor_name");
  std::vector<Name> names(static_cast<std::size_t>(size));
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallgather(mine.data(), static_cast<int>(mine.size()), MPI_CHAR, names.data(),
                           static_cast<int>(mine.size()), MPI_CHAR, MPI_COMM_WORLD, &request),
            "MPI_Iallgather");
  for (int done = 0; done == 0; std::this_thread::sleep_for(std::chrono::microseconds(50)))
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");

  std::vector<std::string> hosts;
  for (const Name& name : names)
    hosts.emplace_back(name.data(), ::strnlen(name.data(), name.size()));
  return hosts;
}

void MpiTransport::run(std::promise<void> started) {
  try {
    const std::optional<bool> wanted = wanted_device_access();  // refused while MPI can be left
    topology_ = start_mpi();
    knows_devices_ = wanted ? *wanted : mpi_knows_devices();
    inbox_ = std::make_unique<Inbox>(rank(), size());
    outbox_ = std::make_unique<Outbox>(size());
  } catch (...) {
    return started.set_exception(std::current_exception());
  }
  started.set_value();

  // The kernel rounds sleeps up by 50 us unless told otherwise.
  ::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  try {
    move_messages();
  } catch (const Error& error) {
    inbox_->fail(error);
    outbox_->discard();
    ended_.set_exception(std::current_exception());
    // MPI's state is undefined now, but MPI_Abort is still the quickest way to end the others.
    while (!called_back()) outbox_->wait_for_work(std::chrono::seconds(1));
  }
  if (const auto code = outbox_->abort_requested()) MPI_Abort(MPI_COMM_WORLD, *code);
}

// Returns after MPI_Finalize, or at once when called back to stop or abort.
void MpiTransport::move_messages() {
  progress_ = std::make_unique<Progress>(rank(), topology_.hosts, *inbox_, *outbox_, device_);
  IdleWait idle;
  MPI_Request barrier = MPI_REQUEST_NULL;
  bool at_barrier = false;
  while (!called_back()) {
    const bool ending = outbox_->end_requested();
    const bool moved = move_once();
    if (moved) {
      idle.something_moved();
    } else {
      idle.wait(*outbox_, progress_->bulk_under_way());
    }
    // Peers may still be sending, so the wait for them is one more thing to poll.
    if (ending && !moved && !at_barrier && progress_->sends_done()) {
      check_mpi(MPI_Ibarrier(MPI_COMM_WORLD, &barrier), "MPI_Ibarrier");
      at_barrier = true;
    }
    int everyone_ended = 0;
    if (at_barrier) check_mpi(MPI_Test(&barrier, &everyone_ended, MPI_STATUS_IGNORE), "MPI_Test");
    if (everyone_ended != 0) {
      progress_->cancel_receives();
      progress_.reset();
      check_mpi(MPI_Finalize(), "MPI_Finalize");
      ended_.set_value();
      return;
    }
  }
}

// One round over what the callers queued and what MPI has; whether there was anything.
bool MpiTransport::move_once() {
  auto messages = outbox_->take();
  for (Outgoing& message : messages) {
    if (message.to != rank()) {
      progress_->start(std::move(message));
      continue;
    }
    inbox_->push(message.header, std::move(message.payload));
    outbox_->mark_left();
  }
  return progress_->poll() || !messages.empty();
}

}  // namespace stagecoach
