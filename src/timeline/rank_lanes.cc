#include "timeline/rank_lanes.h"

#include <algorithm>
#include <numeric>

#include "timeline/activity.h"

namespace stagecoach {

RankLanes::RankLanes(const std::vector<RankTimeline>& ranks) {
  for (const RankTimeline& rank : ranks) {
    std::vector<Span>& lane = main_.emplace_back();
    std::vector<Span> reads;
    numbers_.push_back(rank.rank);
    uncertainty_ns_.push_back(
        std::max(rank.clock.begin.uncertainty_ns, rank.clock.end.uncertainty_ns));
    for (const Span& span : on_rank0_clock(rank)) {
      if (beside_compute(activity_of(span.kind))) {
        reads.push_back(span);
        continue;
      }
      if (span.kind == SpanKind::kSend)
        sends_[span.micro_batch].push_back({main_.size() - 1, lane.size()});
      lane.push_back(span);
    }
    add_reads(reads);
  }
  for (auto& [number, places] : sends_)
    std::stable_sort(places.begin(), places.end(), [&](const Place& a, const Place& b) {
      return at(a).begin_ns < at(b).begin_ns;
    });
}

void RankLanes::add_reads(const std::vector<Span>& spans) {
  reads_.push_back(spans);
  std::vector<std::size_t>& by_end = reads_by_end_.emplace_back(spans.size());
  std::iota(by_end.begin(), by_end.end(), std::size_t{0});
  std::stable_sort(by_end.begin(), by_end.end(),
                   [&](std::size_t a, std::size_t b) { return spans[a].end_ns < spans[b].end_ns; });
  std::vector<std::size_t>& last = last_before_.emplace_back();
  for (std::size_t i = 0, latest = kNone; i < spans.size(); ++i) {
    last.push_back(latest);
    const bool later = latest == kNone || spans[i].end_ns >= spans[latest].end_ns;
    if (later && activity_of(spans[i].kind) == Activity::kRead) latest = i;
  }
}

// Micro-batches pass from rank to rank one after the other, so it is the last send of that
// micro-batch that had begun by then; ranks send themselves nothing that they would have to wait
// for. Clocks agree only so far.
std::optional<Place> RankLanes::sender_of(const Place& place) const {
  const Span& wait = at(place);
  const auto sends = sends_.find(wait.micro_batch);
  if (sends == sends_.end()) return std::nullopt;
  for (auto send = sends->second.rbegin(); send != sends->second.rend(); ++send) {
    const std::int64_t slack = uncertainty_ns_[place.rank] + uncertainty_ns_[send->rank];
    if (send->rank == place.rank || at(*send).begin_ns > wait.end_ns + slack) continue;
    const bool real =
        wait.end_ns - wait.begin_ns >= kRealWaitNs || at(*send).end_ns > wait.begin_ns;
    return real ? std::optional(*send) : std::nullopt;
  }
  return std::nullopt;
}

std::optional<Place> RankLanes::read_of(const Place& place) const {
  const Span& wait = at(place);
  if (wait.end_ns - wait.begin_ns < kRealWaitNs) return std::nullopt;
  const std::vector<Span>& reads = reads_[place.rank];
  const std::vector<std::size_t>& by_end = reads_by_end_[place.rank];
  auto after =
      std::upper_bound(by_end.begin(), by_end.end(), wait.end_ns,
                       [&](std::int64_t ns, std::size_t read) { return ns < reads[read].end_ns; });
  while (after != by_end.begin()) {
    const Span& read = reads[*--after];
    if (read.end_ns <= wait.begin_ns) return std::nullopt;
    if (read.layer == wait.layer) return Place{place.rank, *after};
  }
  return std::nullopt;
}

std::optional<Place> RankLanes::read_before(const Place& read) const {
  if (read.index == 0) return std::nullopt;
  const std::vector<Span>& reads = reads_[read.rank];
  const std::int64_t begin = reads[read.index].begin_ns;
  if (activity_of(reads[read.index].kind) == Activity::kCopy) {
    // What it began after: the copy or the read that ended then. Other reads go on beside it.
    const std::vector<std::size_t>& by_end = reads_by_end_[read.rank];
    auto after =
        std::upper_bound(by_end.begin(), by_end.end(), begin + kRealWaitNs,
                         [&](std::int64_t ns, std::size_t i) { return ns < reads[i].end_ns; });
    while (after != by_end.begin()) {
      const std::size_t before = *--after;
      if (reads[before].end_ns + kRealWaitNs < begin) return std::nullopt;
      if (before < read.index) return Place{read.rank, before};
    }
    return std::nullopt;
  }
  const std::size_t before = last_before_[read.rank][read.index];
  if (before == kNone || reads[before].end_ns + kRealWaitNs < begin) return std::nullopt;
  return Place{read.rank, before};
}

std::optional<Place> RankLanes::main_at(std::size_t rank, std::int64_t ns) const {
  const std::vector<Span>& lane = main_[rank];
  const auto after =
      std::lower_bound(lane.begin(), lane.end(), ns,
                       [](const Span& span, std::int64_t at) { return span.begin_ns < at; });
  if (after == lane.begin()) return std::nullopt;
  return Place{rank, static_cast<std::size_t>(after - lane.begin()) - 1};
}

}  // namespace stagecoach
