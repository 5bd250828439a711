// run.json: what a run was, what came of it and what each rank took for it. Made for `stagecoach
// report` and for other people's programs (docs/timing.md).
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

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

struct RunSummary {
  RunInfo info;
  std::vector<RankSummary> ranks;
};

RunSummary run_summary(const RunInfo& info, const std::vector<RankTimeline>& ranks);

std::string run_json(const RunSummary& summary);
// `source` names the text in errors. Throws data_error on another format or version, and on
// anything that run_json cannot have written.
RunSummary parse_run_json(std::string_view text, const std::string& source);

}  // namespace stagecoach
