// Where the time of each rank went, and what its disk did meanwhile: the table between the critical
// path, which names one culprit, and the layers, of which there are many.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "timeline/activity.h"
#include "timeline/critical_path.h"
#include "timeline/report.h"

namespace stagecoach {

// One rank in one phase. Times and bytes are those of a measured pass, on average.
struct RankSplit {
  int rank = 0;
  Phase phase = Phase::kNone;
  double wall_ms = 0;  // the same for all ranks
  // Of the main thread; adds up to wall_ms. What the rank did for another phase meanwhile is
  // kOther; kRead is not the main thread's and stays 0.
  double by_activity_ms[kActivities] = {};
  double busy = 0;  // part of wall_ms in which the rank computed or its disk read, 0-1
  std::int64_t read_bytes = 0;
  double disk_ms = 0;                   // in which a read was under way
  std::optional<double> share_of_disk;  // GB/s over what a direct read reaches; none: not probed
  std::int64_t copied_bytes = 0;        // weights to its GPU
  double bus_ms = 0;                    // in which a copy of them was under way
  std::optional<double> share_of_bus;   // GB/s over what a copy reaches; none: not probed
  std::optional<int> mostly_for;        // the rank whose messages it waited for most

  double ms(Activity activity) const { return by_activity_ms[static_cast<int>(activity)]; }
  double disk_gb_per_s() const;  // while it read, 10⁹ bytes
  double disk_busy() const;      // part of wall_ms, 0-1
  double bus_gb_per_s() const;   // the same of copies
  double bus_busy() const;
};

// By phase, prefill first, then in the order of `ranks`.
std::vector<RankSplit> rank_splits(const std::vector<RankTimeline>& ranks);

// For people, 120 columns; of many ranks those that idled least. Below it a line for each rank that
// copied weights to its GPU. Empty without rows.
std::string format_rank_table(const std::vector<RankSplit>& splits);
// A line for each phase: "critical path of decode: rank 2's disk: 71 % of the step; …".
std::string format_critical_paths(const std::vector<CriticalPath>& paths);

}  // namespace stagecoach
