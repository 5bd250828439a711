// Phases of a run, summarised.
#pragma once

#include <vector>

#include "timeline/report.h"
#include "timeline/run_info.h"

namespace stagecoach {

// From the wall times of a phase's passes, in milliseconds, and the tokens of one pass.
PhaseResult phase_result(const std::vector<RankTimeline>& ranks, Phase phase,
                         const std::vector<double>& pass_ms, std::int64_t tokens);

// Of runs whose passes are read from the spans alone (generate, score): a pass lasts from its first
// span on any rank to its last one, tokens are the median over passes, and tokens per second are
// those of all passes over the time in which at least one was under way: passes of several groups
// of sequences overlap.
std::vector<PhaseResult> phase_results(const std::vector<RankTimeline>& ranks);

}  // namespace stagecoach
