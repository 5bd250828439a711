#include "timeline/page/gantt_rows.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

namespace stagecoach {
namespace {

bool intersects(const Span& span, const TimeRange& range) {
  return span.begin_ns < range.end_ns && span.end_ns > range.begin_ns;
}

void widen(TimeRange& range, const Span& span) {
  range.begin_ns = std::min(range.begin_ns, span.begin_ns);
  range.end_ns = std::max(range.end_ns, span.end_ns);
}

constexpr TimeRange kNothing{std::numeric_limits<std::int64_t>::max(), 0};

}  // namespace

std::vector<GanttRow> gantt_rows(const std::vector<RankTimeline>& ranks, const TimeRange& range) {
  std::vector<GanttRow> rows;
  for (const RankTimeline& rank : ranks) {
    GanttRow main{.rank = rank.rank, .host = rank.host, .reads = false, .spans = {}};
    GanttRow reads{.rank = rank.rank, .host = rank.host, .reads = true, .spans = {}};
    for (const Span& span : on_rank0_clock(rank))
      if (intersects(span, range))
        (beside_compute(activity_of(span.kind)) ? reads : main).spans.push_back(span);
    rows.push_back(std::move(main));
    if (!reads.spans.empty()) rows.push_back(std::move(reads));
  }
  return rows;
}

SlicedRow slice_row(const GanttRow& row, const TimeRange& range, int slices) {
  SlicedRow sliced;
  sliced.slices.resize(static_cast<std::size_t>(slices));
  const double width = static_cast<double>(range.length()) / slices;
  std::int64_t reached = range.begin_ns;
  for (const Span& span : row.spans) {
    // Reads of several files or parts overlap: what counts is that the disk reads.
    const std::int64_t from = row.reads ? std::max(span.begin_ns, reached) : span.begin_ns;
    if (row.reads) reached = std::max(reached, span.end_ns);
    const double begin = static_cast<double>(std::max(from, range.begin_ns) - range.begin_ns);
    const double end = static_cast<double>(std::min(span.end_ns, range.end_ns) - range.begin_ns);
    const auto activity = static_cast<std::size_t>(activity_of(span.kind));
    const int first = std::clamp(static_cast<int>(begin / width), 0, slices - 1);
    for (int s = first; s < slices && s * width < end; ++s) {
      const double inside = std::min(end, (s + 1) * width) - std::max(begin, s * width);
      if (inside > 0) sliced.slices[static_cast<std::size_t>(s)].share[activity] += inside / width;
    }
  }
  // Clocks of a rank may overlap by a rounding: a slice is not more than full.
  for (SlicedRow::Slice& slice : sliced.slices) {
    double sum = 0;
    for (const double share : slice.share) sum += share;
    if (sum > 1)
      for (double& share : slice.share) share /= sum;
  }
  return sliced;
}

TimeRange whole_run(const std::vector<RankTimeline>& ranks) {
  TimeRange range = kNothing;
  for (const RankTimeline& rank : ranks)
    for (const Span& span : on_rank0_clock(rank))
      if (activity_of(span.kind) != Activity::kWait) widen(range, span);
  return range.end_ns > range.begin_ns ? range : TimeRange{};
}

std::vector<PassExtent> pass_extents(const std::vector<RankTimeline>& ranks, Phase phase) {
  std::map<std::int64_t, TimeRange> ranges;
  // Tokens are counted in one layer, the lowest: each layer sees the same ones.
  std::map<std::int64_t, std::map<std::int32_t, std::int64_t>> tokens;
  for (const RankTimeline& rank : ranks)
    for (const Span& span : on_rank0_clock(rank)) {
      if (!measured(span) || span.phase != phase || activity_of(span.kind) == Activity::kWait)
        continue;
      widen(ranges.try_emplace(span.pass, kNothing).first->second, span);
      if (span.kind == SpanKind::kAttention) tokens[span.pass][span.layer] += span.tokens;
    }
  std::vector<PassExtent> extents;
  for (const auto& [pass, range] : ranges) {
    const auto seen = tokens.find(pass);
    extents.push_back({.pass = pass,
                       .range = range,
                       .tokens = seen == tokens.end() ? 0 : seen->second.begin()->second});
  }
  return extents;
}

PassRange median_pass(const std::vector<RankTimeline>& ranks, Phase phase) {
  std::vector<PassExtent> extents = pass_extents(ranks, phase);
  if (extents.empty()) return {};
  std::stable_sort(extents.begin(), extents.end(), [](const PassExtent& a, const PassExtent& b) {
    return a.range.length() < b.range.length();
  });
  const PassExtent& middle = extents[(extents.size() - 1) / 2];
  return {.range = middle.range,
          .pass = middle.pass,
          .passes = static_cast<std::int64_t>(extents.size())};
}

}  // namespace stagecoach
