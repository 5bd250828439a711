// Which stretches of a run are worth a picture, and the data of a Gantt chart before it is drawn.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "timeline/activity.h"
#include "timeline/report.h"
#include "timeline/time_range.h"

namespace stagecoach {

// From the first span of all ranks to the last one; of waits only what lies between others. Empty
// without spans.
TimeRange whole_run(const std::vector<RankTimeline>& ranks);

// The measured pass of `phase` whose length is the median, from its first span to its last.
struct PassRange {
  TimeRange range;
  std::int64_t pass = 0;
  std::int64_t passes = 0;  // among how many
};
// Empty (length 0) when the phase was not measured.
PassRange median_pass(const std::vector<RankTimeline>& ranks, Phase phase);

// Wall time of every measured pass of `phase`, from its first span on any rank to its last, and
// the tokens that it took through a layer.
struct PassExtent {
  std::int64_t pass = 0;
  TimeRange range;
  std::int64_t tokens = 0;
};
std::vector<PassExtent> pass_extents(const std::vector<RankTimeline>& ranks, Phase phase);

// One line of the chart: a rank's main thread, or what it reads from disk meanwhile.
struct GanttRow {
  int rank = 0;
  std::string host;
  bool reads = false;
  std::vector<Span> spans;  // on rank 0's clock, by beginning
};

// A row per rank, followed by one of its reads where there are any within `range`.
std::vector<GanttRow> gantt_rows(const std::vector<RankTimeline>& ranks, const TimeRange& range);

// A row cut into slices of equal length: which part of each an activity took. Shares of a slice
// add up to 1 at most.
struct SlicedRow {
  struct Slice {
    double share[kActivities] = {};
  };
  std::vector<Slice> slices;
};
SlicedRow slice_row(const GanttRow& row, const TimeRange& range, int slices);

}  // namespace stagecoach
