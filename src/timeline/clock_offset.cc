#include "timeline/clock_offset.h"

#include <cmath>
#include <cstdlib>

#include "base/error.h"

namespace stagecoach {
namespace {

// PC crystals stay within 100 ppm of each other; ten times that leaves room for bad ones and for
// the kernel slewing a clock.
constexpr double kMaxDrift = 1e-3;

}  // namespace

ClockOffset estimate_clock_offset(std::span<const PingSample> samples) {
  const PingSample* best = nullptr;
  const auto round_trip = [](const PingSample& s) { return s.received_ns - s.sent_ns; };
  for (const PingSample& sample : samples) {
    if (round_trip(sample) < 0) continue;
    if (best == nullptr || round_trip(sample) < round_trip(*best)) best = &sample;
  }
  STAGECOACH_CHECK(best != nullptr);
  const std::int64_t midpoint = best->sent_ns + round_trip(*best) / 2;
  return {.offset_ns = midpoint - best->remote_ns,
          .uncertainty_ns = (round_trip(*best) + 1) / 2,
          .measured_ns = midpoint};
}

std::int64_t ClockMap::to_rank0(std::int64_t remote_ns) const {
  // Both measurements seen from the remote clock, whose readings we convert.
  const std::int64_t first = begin.measured_ns - begin.offset_ns;
  const std::int64_t last = end.measured_ns - end.offset_ns;
  const std::int64_t change = end.offset_ns - begin.offset_ns;
  if (end.measured_ns <= begin.measured_ns) return remote_ns + begin.offset_ns;
  if (last <= first ||
      std::abs(static_cast<double>(change)) > kMaxDrift * static_cast<double>(last - first))
    return remote_ns + begin.offset_ns + change / 2;
  if (remote_ns <= first) return remote_ns + begin.offset_ns;
  if (remote_ns >= last) return remote_ns + end.offset_ns;
  const double fraction =
      static_cast<double>(remote_ns - first) / static_cast<double>(last - first);
  return remote_ns + begin.offset_ns + std::llround(fraction * static_cast<double>(change));
}

}  // namespace stagecoach
