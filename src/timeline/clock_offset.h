// Hosts' clocks differ, by days (monotonic clocks count from boot) and by some 10⁻⁵ in rate. Rank 0
// pings every rank at the start and at the end of a job; this is the mathematics of those pings.
//
// Method: Cristian, "Probabilistic clock synchronization", Distributed Computing 3 (1989). The
// answer was read somewhere between sending and receiving, so the midpoint is wrong by at most half
// the round trip; the fastest of many pings therefore bounds the error best. Averaging over all of
// them would not: delays are one-sided (a message can be late, never early).
#pragma once

#include <cstdint>
#include <span>

namespace stagecoach {

// One ping: rank 0 sends at `sent_ns` and receives the answer at `received_ns`, both of rank 0's
// clock; `remote_ns` is what the other rank's clock showed when it answered.
struct PingSample {
  std::int64_t sent_ns = 0;
  std::int64_t remote_ns = 0;
  std::int64_t received_ns = 0;
};

struct ClockOffset {
  std::int64_t offset_ns = 0;       // remote clock + offset = rank 0's clock
  std::int64_t uncertainty_ns = 0;  // the true offset lies within ± this
  std::int64_t measured_ns = 0;     // of rank 0's clock: the midpoint of the ping that was chosen
};

// The offset from the ping with the shortest round trip (the first of equals). Samples whose answer
// came before the question are ignored; throws an internal error when none is left.
ClockOffset estimate_clock_offset(std::span<const PingSample> samples);

// Measurements at the start and at the end of a job. Rank 0's own map is the default one: no
// offset.
struct ClockMap {
  ClockOffset begin, end;

  // Remote → rank 0's clock. The offset is linear between the two measurements and constant outside
  // them: the rate between two nearby measurements is mostly noise, and extrapolating it would move
  // what lies far outside by more than real clocks drift. Two offsets that no crystal explains
  // (they differ by more than 10⁻³ of the time between them) are averaged. Without a second
  // measurement (end not after begin) the first one holds throughout.
  std::int64_t to_rank0(std::int64_t remote_ns) const;
};

}  // namespace stagecoach
