#include "transport/mpi/end_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <string>
#include <string_view>

namespace stagecoach {
namespace {

// Straight to the kernel: glibc 2.36 declares its wrappers without extern "C".
int open_process(pid_t process) { return static_cast<int>(::syscall(SYS_pidfd_open, process, 0)); }
void kill_process(int descriptor) {
  ::syscall(SYS_pidfd_send_signal, descriptor, SIGKILL, nullptr, 0);
}

bool is_launcher(pid_t process) {
  constexpr std::array<std::string_view, 5> kNames{"mpirun", "orterun", "orted", "prterun", "prted"};
  std::ifstream file("/proc/" + std::to_string(process) + "/comm");
  std::string name;
  return std::getline(file, name) && std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

// In the forked child of a process with threads: async-signal-safe calls only.
[[noreturn]] void guard(int launcher, int limit_ms) {
  // Away from the signals that the launcher sends to our process group, and from its pipes: it would
  // take us for a rank that is still running.
  ::setsid();
  constexpr int kKept = 3;
  if (launcher != kKept) ::dup2(launcher, kKept);
  for (int standard = 0; standard < kKept; ++standard) ::close(standard);
  ::close_range(kKept + 1, ~0U, 0);

  pollfd ended{.fd = kKept, .events = POLLIN, .revents = 0};
  // SIGKILL, because mpirun 4.1 answers a SIGTERM in the middle of its abort by crashing with a trace.
  if (::poll(&ended, 1, limit_ms) == 0) kill_process(kKept);
  ::_exit(0);
}

}  // namespace

void end_stuck_launcher_after(std::chrono::milliseconds limit) {
  const pid_t parent = ::getppid();
  // The descriptor comes before the look at the name: it stays with this one process, whereas the number
  // may pass to another.
  const int launcher = open_process(parent);
  if (launcher < 0) return;
  if (is_launcher(parent) && ::getppid() == parent && ::fork() == 0)
    guard(launcher, static_cast<int>(limit.count()));
  ::close(launcher);
}

void end_process(int code) { ::_exit(code); }

}  // namespace stagecoach
