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
// sent it. One path for each phase that was measured, prefill first. Pure: spans in, shares out.
std::vector<CriticalPath> critical_paths(const std::vector<RankTimeline>& ranks);

// "rank 1's attention: 48 % of the path; rank 0's MLP: 30 %; 12 % waiting for rank 0's messages;
// 10 % elsewhere"
std::string describe(const CriticalPath& path);

// Where the time of one rank's main thread went, from the first measured span of all ranks to the
// last one.
struct RankShare {
  int rank = 0;
  std::int64_t total_ns = 0;                   // the same for all ranks
  std::int64_t by_activity[kActivities] = {};  // adds up to total_ns; reads are apart
  std::vector<PathShare> waited_for;           // kWait, by sender, longest first
};
std::vector<RankShare> rank_shares(const std::vector<RankTimeline>& ranks);

}  // namespace stagecoach
