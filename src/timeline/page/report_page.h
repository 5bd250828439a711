// report.html: one run to look at, in one file.
#pragma once

#include <string>
#include <vector>

#include "timeline/report.h"
#include "timeline/run_summary.h"

namespace stagecoach {

// `rows` and `summary` are those of `ranks`. The page needs no network and no script.
std::string report_page(const RunSummary& summary, const std::vector<LayerRow>& rows,
                        const std::vector<RankTimeline>& ranks);

// The pieces that the comparison page shares.

// <li> of the list of facts: a figure, and what it is. Both are escaped.
std::string fact(const std::string& figure, const std::string& what);
// "rank 0's host, 4 threads, avx2" of all ranks, each different thing once.
std::string describe_hosts(const std::vector<RankSummary>& ranks);
std::string describe_threads(const std::vector<RankSummary>& ranks);
std::string describe_isas(const std::vector<RankSummary>& ranks);

}  // namespace stagecoach
