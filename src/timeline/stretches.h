// Which stretches of a run were measured, and of what.
#pragma once

#include <vector>

#include "timeline/report.h"
#include "timeline/time_range.h"

namespace stagecoach {

struct Stretch {
  Phase phase = Phase::kNone;
  TimeRange range;
};

// Where a measured pass was under way, on rank 0's clock, by beginning. What lies between two
// passes of a phase (a token on its way back, the drawing of the next one) is that phase's too,
// unless something else went on there. Those of two phases may overlap.
std::vector<Stretch> measured_stretches(const std::vector<RankTimeline>& ranks);
// Each moment belongs to the stretch that began first.
std::vector<Stretch> without_overlap(const std::vector<Stretch>& stretches);
// The ranges of one phase, merged.
std::vector<TimeRange> ranges_of(const std::vector<Stretch>& stretches, Phase phase);

// The same time in order and without overlap.
std::vector<TimeRange> merged(std::vector<TimeRange> ranges);
std::int64_t covered_ns(const std::vector<TimeRange>& merged);
// What of `range` lies in a merged list.
std::int64_t inside_ns(const TimeRange& range, const std::vector<TimeRange>& merged);
// Time that two merged lists have in common.
std::int64_t common_ns(const std::vector<TimeRange>& a, const std::vector<TimeRange>& b);

}  // namespace stagecoach
