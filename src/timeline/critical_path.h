// Why a run took as long as it did: the chain of spans and messages that ends last, walked
// backwards.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "timeline/activity.h"
#include "timeline/report.h"

namespace stagecoach {

// Time on the critical path that went to one activity of one rank. For Activity::kWait the rank is
// the sender: the time in which its message was on the way, and nobody computed for this path.
// Activity::kRead is the rank's disk, which the path waited for, kCopy the bus to its device.
struct PathShare {
  int rank = 0;
  Activity activity = Activity::kOther;
  std::int64_t ns = 0;
};

// The part of the path that belongs to the measured passes of one phase.
struct CriticalPath {
  Phase phase = Phase::kNone;
  std::int64_t total_ns = 0;
  std::vector<PathShare> shares;  // largest first; they add up to total_ns
};

// From the end of the last measured span back: through the span's beginning to the span before it
// on that rank or, where a rank really waited for a message, through the message to the span that
// sent it. A wait for weights leads back along the rank's disk, as far as that has not rested. One
// path for each phase that was measured, prefill first. Pure: spans in, shares out.
std::vector<CriticalPath> critical_paths(const std::vector<RankTimeline>& ranks);

// "rank 1's attention: 48 % of the pass; rank 0's MLP: 30 %; 12 % waiting for rank 0's messages;
// 10 % elsewhere"; of a phase that decodes: "rank 2's disk: 71 % of the step; …"
std::string describe(const CriticalPath& path);

}  // namespace stagecoach
