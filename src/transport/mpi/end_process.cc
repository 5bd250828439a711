#include "transport/mpi/end_process.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>

#include "base/clock.h"

namespace stagecoach {
namespace {

// Straight to the kernel: glibc 2.36 declares its wrappers without extern "C".
int open_process(pid_t process) {
  return static_cast<int>(::syscall(SYS_pidfd_open, process, 0));
}
int copy_descriptor(int process, int number) {
  return static_cast<int>(::syscall(SYS_pidfd_getfd, process, number, 0));
}
void kill_process(int process) {
  ::syscall(SYS_pidfd_send_signal, process, SIGKILL, nullptr, 0);
}

Launcher launcher_at(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/comm");
  std::string name;
  std::getline(file, name);
  if (name == "mpirun" || name == "orterun" || name == "prterun") return Launcher::kMpirun;
  if (name == "orted" || name == "prted") return Launcher::kDaemon;
  return Launcher::kNone;
}

template <typename Body>
void for_each_descriptor(int process, Body body) {
  constexpr int kDescriptors = 1024;
  for (int number = 0; number < kDescriptors; ++number) {
    const int copy = copy_descriptor(process, number);
    if (copy < 0) continue;
    body(copy);
    ::close(copy);
  }
}

// Has the kernel ask the other end of each of the launcher's connections once a second whether it
// is there; of one that has been idle for longer, at once.
void probe_connections(int process) {
  for_each_descriptor(process, [](int socket) {
    constexpr int kOne = 1;
    ::setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &kOne, sizeof(kOne));
    ::setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &kOne, sizeof(kOne));
    ::setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &kOne, sizeof(kOne));
  });
}

// Shuts those that did not answer, so that the launcher notices now what TCP would tell it in a
// quarter of an hour, and ends in its own orderly way with the job's code. Returns whether there
// were any. Where the kernel forbids it (before Linux 5.6, or under Yama) there are none.
bool sever_dead_connections(int process) {
  constexpr std::uint32_t kSilentMilliseconds =
      1400;  // a living end has answered within the last 1000
  bool severed = false;
  for_each_descriptor(process, [&](int socket) {
    tcp_info info{};
    socklen_t length = sizeof(info);
    if (::getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return;
    if (info.tcpi_state != TCP_ESTABLISHED || info.tcpi_last_ack_recv < kSilentMilliseconds) return;
    ::shutdown(socket, SHUT_RDWR);
    severed = true;
  });
  return severed;
}

// In the forked child of a process with threads: async-signal-safe calls only.
[[noreturn]] void guard(int launcher, const GuardLimits& limits) {
  const Deadline begin = Clock::now();
  // Away from the signals that the launcher sends to our process group, and from its pipes: it
  // would take us for a rank that is still running.
  ::setsid();
  constexpr int kKept = 3;
  if (launcher != kKept) ::dup2(launcher, kKept);
  for (int standard = 0; standard < kKept; ++standard) ::close(standard);
  ::close_range(kKept + 1, ~0U, 0);

  constexpr int kLookMilliseconds = 150;  // a healthy LAN answers in a few
  pollfd ended{.fd = kKept, .events = POLLIN, .revents = 0};
  bool cut_off = false;
  probe_connections(kKept);
  while (::poll(&ended, 1, kLookMilliseconds) == 0) {
    cut_off = sever_dead_connections(kKept) || cut_off;
    // SIGKILL, because mpirun 4.1 answers a SIGTERM in the middle of its abort by crashing with a
    // trace.
    if (Clock::now() - begin >= (cut_off ? limits.cut_off : limits.otherwise)) kill_process(kKept);
  }
  ::_exit(0);
}

}  // namespace

Launcher parent_launcher() {
  return launcher_at(::getppid());
}

void start_launcher_guard(const GuardLimits& limits) {
  const pid_t parent = ::getppid();
  // The descriptor comes before the look at the name: it stays with this one process, whereas the
  // number may pass to another.
  const int launcher = open_process(parent);
  if (launcher < 0) return;
  if (launcher_at(parent) != Launcher::kNone && ::getppid() == parent && ::fork() == 0)
    guard(launcher, limits);
  ::close(launcher);
}

void end_process(int code) {
  ::_exit(code);
}

}  // namespace stagecoach
