#include "transport/mpi/end_process.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bitset>
#include <fstream>
#include <string>

#include "base/clock.h"

namespace stagecoach {
namespace {

// Straight to the kernel: glibc 2.36 declares its wrappers without extern "C".
int open_process(pid_t process) { return static_cast<int>(::syscall(SYS_pidfd_open, process, 0)); }
int copy_descriptor(int process, int number) {
  return static_cast<int>(::syscall(SYS_pidfd_getfd, process, number, 0));
}
void kill_process(int process) { ::syscall(SYS_pidfd_send_signal, process, SIGKILL, nullptr, 0); }

bool awaits_acknowledgement(int socket) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  return ::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
         info.tcpi_state == TCP_ESTABLISHED && info.tcpi_unacked > 0;
}

using Descriptors = std::bitset<1024>;

// Shuts those of the launcher's connections whose bytes nobody has acknowledged since the last look, so
// that it notices now what TCP would tell it in a quarter of an hour, and ends in its own orderly way
// with the job's code. Where the kernel forbids it (before Linux 5.6, or under Yama) nothing happens.
void sever_stuck_connections(int process, Descriptors& waited_before) {
  Descriptors waiting;
  for (std::size_t number = 0; number < waiting.size(); ++number) {
    const int copy = copy_descriptor(process, static_cast<int>(number));
    if (copy < 0) continue;
    waiting[number] = awaits_acknowledgement(copy);
    if (waiting[number] && waited_before[number]) ::shutdown(copy, SHUT_RDWR);
    ::close(copy);
  }
  waited_before = waiting;
}

// In the forked child of a process with threads: async-signal-safe calls only.
[[noreturn]] void guard(int launcher, Deadline deadline) {
  // Away from the signals that the launcher sends to our process group, and from its pipes: it would
  // take us for a rank that is still running.
  ::setsid();
  constexpr int kKept = 3;
  if (launcher != kKept) ::dup2(launcher, kKept);
  for (int standard = 0; standard < kKept; ++standard) ::close(standard);
  ::close_range(kKept + 1, ~0U, 0);

  constexpr int kLookMilliseconds = 100;  // a healthy LAN acknowledges in a few
  pollfd ended{.fd = kKept, .events = POLLIN, .revents = 0};
  Descriptors waited_before;
  while (::poll(&ended, 1, kLookMilliseconds) == 0) {
    // SIGKILL, because mpirun 4.1 answers a SIGTERM in the middle of its abort by crashing with a trace.
    if (Clock::now() >= deadline) kill_process(kKept);
    sever_stuck_connections(kKept, waited_before);
  }
  ::_exit(0);
}

}  // namespace

Launcher parent_launcher() {
  std::ifstream file("/proc/" + std::to_string(::getppid()) + "/comm");
  std::string name;
  std::getline(file, name);
  if (name == "mpirun" || name == "orterun" || name == "prterun") return Launcher::kMpirun;
  if (name == "orted" || name == "prted") return Launcher::kDaemon;
  return Launcher::kNone;
}

void start_launcher_guard(std::chrono::milliseconds patience) {
  const pid_t parent = ::getppid();
  // The descriptor comes before the look at the name: it stays with this one process, whereas the number
  // may pass to another.
  const int launcher = open_process(parent);
  if (launcher < 0) return;
  if (parent_launcher() != Launcher::kNone && ::getppid() == parent && ::fork() == 0)
    guard(launcher, Clock::now() + patience);
  ::close(launcher);
}

void end_process(int code) { ::_exit(code); }

}  // namespace stagecoach
