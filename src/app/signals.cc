#include "app/signals.h"

#include <signal.h>
#include <unistd.h>

namespace stagecoach {

std::atomic<bool> interrupt_requested{false};
static_assert(std::atomic<bool>::is_always_lock_free,
              "the handler may only touch lock-free atomics");

namespace {

void on_signal(int) {
  if (interrupt_requested.exchange(true)) _exit(130);
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // A reader that has gone (| head) shows as a write error, which is reported; not as a silent
  // death.
  ::signal(SIGPIPE, SIG_IGN);
  // Full disks and file size limits likewise.
  ::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace stagecoach
