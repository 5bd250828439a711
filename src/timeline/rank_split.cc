#include "timeline/rank_split.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "timeline/rank_lanes.h"
#include "timeline/saturating.h"
#include "timeline/stretches.h"

namespace stagecoach {
namespace {

bool computes(Activity activity) {
  return activity == Activity::kAttention || activity == Activity::kMlp ||
         activity == Activity::kEmbedding || activity == Activity::kHead;
}

// Sums over all measured passes of a phase.
struct Totals {
  std::int64_t by_activity[kActivities] = {};
  std::vector<TimeRange> computing, reading, copying;
  std::map<int, std::int64_t> waited_for;  // by sender
  double read_bytes = 0, copied_bytes = 0;
};

class PhaseSplitter {
 public:
  PhaseSplitter(const RankLanes& lanes, Phase phase, std::vector<TimeRange> ranges,
                std::int64_t passes)
      : lanes_(lanes), phase_(phase), ranges_(std::move(ranges)), passes_(passes) {}

  RankSplit split(std::size_t rank, const RankUsage& usage) const {
    Totals totals;
    add_main_thread(rank, totals);
    add_reads(rank, totals);
    const std::int64_t wall = covered_ns(ranges_);
    RankSplit split;
    split.rank = lanes_.number(rank);
    split.phase = phase_;
    split.wall_ms = a_pass(wall);
    for (int a = 0; a < kActivities; ++a) split.by_activity_ms[a] = a_pass(totals.by_activity[a]);
    const std::vector<TimeRange> reading = merged(totals.reading);
    split.disk_ms = a_pass(common_ns(reading, ranges_));
    split.read_bytes = static_cast<std::int64_t>(totals.read_bytes / passes());
    split.bus_ms = a_pass(common_ns(merged(totals.copying), ranges_));
    split.copied_bytes = static_cast<std::int64_t>(totals.copied_bytes / passes());
    totals.computing.insert(totals.computing.end(), reading.begin(), reading.end());
    if (wall > 0)
      split.busy = static_cast<double>(common_ns(merged(totals.computing), ranges_)) /
                   static_cast<double>(wall);
    if (usage.disk_bytes_per_s > 0 && split.disk_ms > 0)
      split.share_of_disk = split.disk_gb_per_s() * 1e9 / usage.disk_bytes_per_s;
    if (usage.bus_bytes_per_s > 0 && split.bus_ms > 0)
      split.share_of_bus = split.bus_gb_per_s() * 1e9 / usage.bus_bytes_per_s;
    const auto longest =
        std::max_element(totals.waited_for.begin(), totals.waited_for.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    if (longest != totals.waited_for.end()) split.mostly_for = longest->first;
    return split;
  }

 private:
  double passes() const { return static_cast<double>(passes_); }
  double a_pass(std::int64_t ns) const { return static_cast<double>(ns) * 1e-6 / passes(); }

  void add_main_thread(std::size_t rank, Totals& totals) const {
    std::int64_t known = 0, reached = 0;
    for (std::size_t i = 0; i < lanes_.main(rank).size(); ++i) {
      const Span& span = lanes_.main(rank)[i];
      // Only what no span before it has covered.
      const TimeRange range{std::max(span.begin_ns, reached), span.end_ns};
      if (range.length() <= 0) continue;
      reached = range.end_ns;
      const Activity activity = activity_of(span.kind);
      // A rank that waits is idle, whichever message comes then.
      const bool counts = activity == Activity::kWait || (measured(span) && span.phase == phase_);
      const std::int64_t ns = counts ? inside_ns(range, ranges_) : 0;
      add_saturated(totals.by_activity[static_cast<int>(activity)], ns);
      add_saturated(known, ns);
      if (computes(activity)) totals.computing.push_back(range);
      if (activity != Activity::kWait || ns == 0) continue;
      if (const auto send = lanes_.sender_of({rank, i}))
        add_saturated(totals.waited_for[lanes_.number(send->rank)], ns);
    }
    add_saturated(totals.by_activity[static_cast<int>(Activity::kOther)],
                  covered_ns(ranges_) - known);
  }

  // Of a read or a copy that lies partly outside, its bytes in proportion.
  void add_reads(std::size_t rank, Totals& totals) const {
    for (const Span& span : lanes_.reads(rank)) {
      const bool copy = span.kind == SpanKind::kCopy;
      if (!copy && span.kind != SpanKind::kRead) continue;
      const TimeRange range{span.begin_ns, span.end_ns};
      const std::int64_t inside = inside_ns(range, ranges_);
      if (inside == 0) continue;
      (copy ? totals.copying : totals.reading).push_back(range);
      (copy ? totals.copied_bytes : totals.read_bytes) += static_cast<double>(span.bytes) *
                                                          static_cast<double>(inside) /
                                                          static_cast<double>(range.length());
    }
  }

  const RankLanes& lanes_;
  Phase phase_;
  std::vector<TimeRange> ranges_;
  std::int64_t passes_;
};

std::int64_t count_passes(const std::vector<RankTimeline>& ranks, Phase phase) {
  std::set<std::int64_t> passes;
  for (const RankTimeline& rank : ranks)
    for (const Span& span : rank.spans)
      if (measured(span) && span.phase == phase && span.kind != SpanKind::kIdle)
        passes.insert(span.pass);
  return static_cast<std::int64_t>(passes.size());
}

}  // namespace

double RankSplit::disk_gb_per_s() const {
  return disk_ms > 0 ? static_cast<double>(read_bytes) / disk_ms * 1e-6 : 0;
}

double RankSplit::disk_busy() const {
  return wall_ms > 0 ? disk_ms / wall_ms : 0;
}

double RankSplit::bus_gb_per_s() const {
  return bus_ms > 0 ? static_cast<double>(copied_bytes) / bus_ms * 1e-6 : 0;
}

double RankSplit::bus_busy() const {
  return wall_ms > 0 ? bus_ms / wall_ms : 0;
}

std::vector<RankSplit> rank_splits(const std::vector<RankTimeline>& ranks) {
  const RankLanes lanes(ranks);
  const std::vector<Stretch> stretches = measured_stretches(ranks);
  std::vector<RankSplit> splits;
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    const std::vector<TimeRange> ranges = ranges_of(stretches, phase);
    if (ranges.empty()) continue;
    const PhaseSplitter splitter(lanes, phase, ranges, count_passes(ranks, phase));
    for (std::size_t rank = 0; rank < ranks.size(); ++rank)
      splits.push_back(splitter.split(rank, ranks[rank].usage));
  }
  return splits;
}

}  // namespace stagecoach
