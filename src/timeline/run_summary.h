// run.json: what a run was, what came of it and what each rank took for it. Made for `stagecoach
// report` and for other people's programs (docs/timing.md).
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "timeline/rank_split.h"
#include "timeline/report.h"
#include "timeline/run_info.h"

namespace stagecoach {

struct RankSummary {
  int rank = 0;
  std::string host;
  RankUsage usage;
  std::int64_t sent_bytes = 0, received_bytes = 0;  // hidden states and results, warm-up included
  std::int64_t read_bytes = 0;                      // from disk
};

// What a phase spent its time on.
struct PhaseSplit {
  Phase phase = Phase::kNone;
  std::string critical_path;  // in words
  std::vector<RankSplit> ranks;
};
std::vector<PhaseSplit> phase_splits(const std::vector<RankTimeline>& ranks);

struct RunSummary {
  RunInfo info;
  std::vector<RankSummary> ranks;
  std::vector<PhaseSplit> splits;  // prefill first; of what version 1 wrote: none
};

RunSummary run_summary(const RunInfo& info, const std::vector<RankTimeline>& ranks);

// "critical_path" and "ranks_detail", as `time --json` has them too.
nlohmann::ordered_json split_json(const PhaseSplit& split);

std::string run_json(const RunSummary& summary);
// Reads version 1 too, which had no splits. `source` names the text in errors. Throws data_error on
// another format or version, and on anything that run_json cannot have written.
RunSummary parse_run_json(std::string_view text, const std::string& source);

}  // namespace stagecoach
