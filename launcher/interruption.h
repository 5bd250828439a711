// Ctrl-C: what waits ends soon after it, and what must still be done then has little time.
#pragma once

#include <functional>
#include <memory>

#include "launcher/channel.h"

namespace stagecoach {

// Whether the user wants an end of it, asked a few times a second; null: nobody asks.
using Interrupted = std::function<bool()>;

// kInterrupted.
void throw_if_interrupted(const Interrupted& interrupted);

// Five seconds are promised from Ctrl-C to the end of a launch, whatever hosts do not answer: each
// step of cleaning up has its share, counted from when the interrupt was first seen.
class Grace {
 public:
  explicit Grace(Interrupted interrupted);
  // True when so long has passed since; until then what is interrupted may go on. Copies may be
  // asked by any thread, and must not outlive what `interrupted` refers to.
  Interrupted after(Seconds grace) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace stagecoach
