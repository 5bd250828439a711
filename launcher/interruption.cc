#include "launcher/interruption.h"

#include <mutex>
#include <optional>

#include "base/clock.h"
#include "base/error.h"

namespace stagecoach {

void throw_if_interrupted(const Interrupted& interrupted) {
  if (interrupted && interrupted()) throw Error(ErrorKind::kInterrupted, "interrupted");
}

struct Grace::State {
  Interrupted interrupted;
  std::mutex mutex;
  std::optional<Clock::time_point> since;
};

Grace::Grace(Interrupted interrupted) : state_(std::make_shared<State>()) {
  state_->interrupted = std::move(interrupted);
}

Interrupted Grace::after(Seconds grace) const {
  return [state = state_, grace] {
    if (!state->interrupted || !state->interrupted()) return false;
    const std::lock_guard lock(state->mutex);
    if (!state->since) state->since = Clock::now();
    return Clock::now() - *state->since >= grace;
  };
}

}  // namespace stagecoach
