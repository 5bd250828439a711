// Ranks over time as a picture.
#pragma once

#include <string>
#include <vector>

#include "timeline/page/gantt_rows.h"

namespace stagecoach {

// An HTML figure of `range`: a row per rank, one more where it reads, a time axis, a legend. Few
// spans are drawn one by one, each with a title. Many are merged: the range is cut into slices, in
// which each activity has the share of the height that it had of the time; the caption says so.
std::string gantt_figure(const std::vector<RankTimeline>& ranks, const TimeRange& range);

}  // namespace stagecoach
