#include "timeline/stretches.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "timeline/activity.h"
#include "timeline/saturating.h"

namespace stagecoach {
namespace {

constexpr TimeRange kNothing{std::numeric_limits<std::int64_t>::max(), 0};

// One pass of any phase, warm-up and the filling of a context included.
struct Pass {
  Phase phase = Phase::kNone;
  bool counts = false;
  TimeRange range;
};

std::vector<Pass> all_passes(const std::vector<RankTimeline>& ranks) {
  std::map<std::pair<Phase, std::int64_t>, TimeRange> ranges;
  for (const RankTimeline& rank : ranks)
    for (const Span& span : on_rank0_clock(rank)) {
      const Activity activity = activity_of(span.kind);
      if (beside_compute(activity) || activity == Activity::kWait) continue;
      TimeRange& range = ranges.try_emplace({span.phase, span.pass}, kNothing).first->second;
      range.begin_ns = std::min(range.begin_ns, span.begin_ns);
      range.end_ns = std::max(range.end_ns, span.end_ns);
    }
  std::vector<Pass> passes;
  for (const auto& [key, range] : ranges)
    passes.push_back({.phase = key.first,
                      .counts = key.first != Phase::kNone && key.second >= 0,
                      .range = range});
  std::stable_sort(passes.begin(), passes.end(), [](const Pass& a, const Pass& b) {
    return a.range.begin_ns < b.range.begin_ns;
  });
  return passes;
}

}  // namespace

std::vector<Stretch> measured_stretches(const std::vector<RankTimeline>& ranks) {
  std::vector<Stretch> stretches;
  bool last_counts = false;
  for (const Pass& pass : all_passes(ranks)) {
    const bool goes_on =
        pass.counts && last_counts && !stretches.empty() && stretches.back().phase == pass.phase;
    last_counts = pass.counts;
    if (goes_on) {
      TimeRange& range = stretches.back().range;
      range.end_ns = std::max(range.end_ns, pass.range.end_ns);
    } else if (pass.counts) {
      stretches.push_back({pass.phase, pass.range});
    }
  }
  return stretches;
}

std::vector<Stretch> without_overlap(const std::vector<Stretch>& stretches) {
  std::vector<Stretch> result;
  std::int64_t reached = std::numeric_limits<std::int64_t>::min();
  for (const auto& [phase, range] : stretches) {
    if (range.end_ns <= reached) continue;
    result.push_back({phase, {std::max(range.begin_ns, reached), range.end_ns}});
    reached = range.end_ns;
  }
  return result;
}

std::vector<TimeRange> ranges_of(const std::vector<Stretch>& stretches, Phase phase) {
  std::vector<TimeRange> ranges;
  for (const Stretch& stretch : stretches)
    if (stretch.phase == phase) ranges.push_back(stretch.range);
  return merged(std::move(ranges));
}

std::vector<TimeRange> merged(std::vector<TimeRange> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const TimeRange& a, const TimeRange& b) { return a.begin_ns < b.begin_ns; });
  std::vector<TimeRange> result;
  for (const TimeRange& range : ranges) {
    if (range.end_ns <= range.begin_ns) continue;
    if (!result.empty() && range.begin_ns <= result.back().end_ns) {
      result.back().end_ns = std::max(result.back().end_ns, range.end_ns);
    } else {
      result.push_back(range);
    }
  }
  return result;
}

std::int64_t covered_ns(const std::vector<TimeRange>& merged) {
  std::int64_t sum = 0;
  for (const TimeRange& range : merged) add_saturated(sum, range.length());
  return sum;
}

std::int64_t inside_ns(const TimeRange& range, const std::vector<TimeRange>& merged) {
  std::int64_t sum = 0;
  auto part =
      std::lower_bound(merged.begin(), merged.end(), range.begin_ns,
                       [](const TimeRange& r, std::int64_t begin) { return r.end_ns <= begin; });
  for (; part != merged.end() && part->begin_ns < range.end_ns; ++part)
    sum += std::min(range.end_ns, part->end_ns) - std::max(range.begin_ns, part->begin_ns);
  return sum;
}

std::int64_t common_ns(const std::vector<TimeRange>& a, const std::vector<TimeRange>& b) {
  std::int64_t sum = 0;
  for (std::size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const std::int64_t begin = std::max(a[i].begin_ns, b[j].begin_ns);
    const std::int64_t end = std::min(a[i].end_ns, b[j].end_ns);
    if (end > begin) add_saturated(sum, end - begin);
    a[i].end_ns < b[j].end_ns ? ++i : ++j;
  }
  return sum;
}

}  // namespace stagecoach
