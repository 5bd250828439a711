#pragma once

#include <algorithm>
#include <chrono>

#include "base/clock.h"
#include "transport/mpi/outbox.h"

namespace stagecoach {

// What the comm thread does between polls that found nothing. Open MPI's own waiting burns a core;
// this is quick while an answer is likely and sleeps ever longer while nothing happens. It sleeps a
// quarter of the time that it has waited already, so that a message arrives at most so much later
// than it could.
class IdleWait {
 public:
  void something_moved() { since_ = Clock::now(); }

  void wait(Outbox& outbox, bool bulk_under_way) {
    using std::chrono::microseconds;
    const auto idle = Clock::now() - since_;
    // No sched_yield after this: next to compute threads it gives away a whole time slice, while a
    // thread that sleeps is woken before them (measured: 2 ms one way against 0.2 ms).
    if (idle < microseconds(60)) return;
    // A socket's buffer holds 50 us of payload on any link that PCs have.
    const auto longest = bulk_under_way                   ? kShortest
                         : idle < std::chrono::seconds(1) ? kLonger
                                                          : kLongest;
    outbox.wait_for_work(std::clamp<Clock::duration>(idle / 4, kShortest, longest));
  }

 private:
  static constexpr std::chrono::microseconds kShortest{50};
  static constexpr std::chrono::microseconds kLonger{1000};
  static constexpr std::chrono::microseconds kLongest{2000};
  Deadline since_ = Clock::now();
};

}  // namespace stagecoach
