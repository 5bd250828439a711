// Collective exchanges at the ends of a job: clock offsets, and everybody's timeline to rank 0.
#pragma once

#include <vector>

#include "pipeline/control_channel.h"
#include "timeline/report.h"
#include "timeline/timeline.h"

namespace stagecoach {

// Ping-pongs from rank 0 to every rank. On rank 0: one offset per rank (its own is zero); elsewhere
// empty.
std::vector<ClockOffset> measure_clocks(ControlChannel& control);

// On rank 0: all ranks' spans and what each took for them, with their clocks mapped by the two
// measurements; elsewhere empty.
std::vector<RankTimeline> gather_timelines(ControlChannel& control, Timeline& timeline,
                                           const RankUsage& usage,
                                           const std::vector<ClockOffset>& begin,
                                           const std::vector<ClockOffset>& end);

}  // namespace stagecoach
