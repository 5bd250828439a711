#include "timeline/critical_path.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"

namespace stagecoach {
namespace {

// A wait shorter than this found its message there already: what remains is the cost of looking.
constexpr std::int64_t kRealWaitNs = 20'000;

struct Place {
  std::size_t rank = 0, index = 0;  // of the list of ranks, and of its main thread's spans
};

// The main threads of all ranks on one clock, with every message findable by its micro-batch.
class MainThreads {
 public:
  explicit MainThreads(const std::vector<RankTimeline>& ranks) {
    for (const RankTimeline& rank : ranks) {
      std::vector<Span>& lane = lanes_.emplace_back();
      numbers_.push_back(rank.rank);
      uncertainty_ns_.push_back(
          std::max(rank.clock.begin.uncertainty_ns, rank.clock.end.uncertainty_ns));
      for (const Span& span : on_rank0_clock(rank)) {
        if (beside_compute(activity_of(span.kind))) continue;
        if (span.kind == SpanKind::kSend)
          sends_[span.micro_batch].push_back({lanes_.size() - 1, lane.size()});
        lane.push_back(span);
      }
    }
    for (auto& [number, places] : sends_)
      std::stable_sort(places.begin(), places.end(), [&](const Place& a, const Place& b) {
        return at(a).begin_ns < at(b).begin_ns;
      });
  }

  const std::vector<std::vector<Span>>& lanes() const { return lanes_; }
  const Span& at(const Place& place) const { return lanes_[place.rank][place.index]; }
  int number(std::size_t rank) const { return numbers_[rank]; }

  // The send whose message ended the wait at `place`. Micro-batches pass from rank to rank one
  // after the other, so it is the last send of that micro-batch that had begun by then; ranks send
  // themselves nothing that they would have to wait for. Clocks agree only so far.
  std::optional<Place> sender_of(const Place& place) const {
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

 private:
  std::vector<std::vector<Span>> lanes_;
  std::vector<int> numbers_;
  std::vector<std::int64_t> uncertainty_ns_;
  std::map<std::int64_t, std::vector<Place>> sends_;  // by micro-batch, by beginning
};

class Walk {
 public:
  explicit Walk(const MainThreads& threads) : threads_(threads) {
    for (const std::vector<Span>& lane : threads.lanes()) visited_.emplace_back(lane.size(), false);
  }

  std::vector<CriticalPath> run() {
    std::optional<Place> place = last_measured();
    if (place) reached_ns_ = threads_.at(*place).end_ns;
    while (place) place = step(*place);

    std::vector<CriticalPath> paths;
    for (const auto& [phase, shares] : shares_) {
      CriticalPath& path = paths.emplace_back();
      path.phase = phase;
      for (const auto& [key, ns] : shares) {
        path.total_ns += ns;
        path.shares.push_back({.rank = key.first, .activity = key.second, .ns = ns});
      }
      std::stable_sort(path.shares.begin(), path.shares.end(),
                       [](const PathShare& a, const PathShare& b) { return a.ns > b.ns; });
    }
    return paths;
  }

 private:
  std::optional<Place> last_measured() const {
    std::optional<Place> last;
    for (std::size_t rank = 0; rank < threads_.lanes().size(); ++rank) {
      const std::vector<Span>& lane = threads_.lanes()[rank];
      for (std::size_t i = 0; i < lane.size(); ++i) {
        const bool work = activity_of(lane[i].kind) != Activity::kWait;
        if (work && measured(lane[i]) && (!last || lane[i].end_ns > threads_.at(*last).end_ns))
          last = Place{rank, i};
      }
    }
    return last;
  }

  // Accounts for what lies before reached_ns_ at `place`, and says where the path goes on.
  std::optional<Place> step(const Place& place) {
    visited_[place.rank][place.index] = true;
    const Span& span = threads_.at(place);
    const Activity activity = activity_of(span.kind);
    if (activity == Activity::kWait) {
      // Unmeasured clocks could close a loop; a span is walked through once.
      const std::optional<Place> send = threads_.sender_of(place);
      if (send && !visited_[send->rank][send->index]) {
        const Span& sent = threads_.at(*send);
        account(sent, threads_.number(send->rank), Activity::kWait, sent.end_ns);
        return send;
      }
    }
    account(span, threads_.number(place.rank), activity, span.begin_ns);
    if (place.index == 0) return std::nullopt;
    const Place before{place.rank, place.index - 1};
    if (visited_[before.rank][before.index]) return std::nullopt;
    account(span, threads_.number(place.rank), Activity::kOther, threads_.at(before).end_ns);
    return before;
  }

  void account(const Span& owner, int rank, Activity activity, std::int64_t until_ns) {
    const std::int64_t ns = reached_ns_ - std::min(until_ns, reached_ns_);
    reached_ns_ -= ns;
    if (ns > 0 && measured(owner)) shares_[owner.phase][{rank, activity}] += ns;
  }

  const MainThreads& threads_;
  std::vector<std::vector<bool>> visited_;
  std::int64_t reached_ns_ = 0;  // everything after it is accounted for
  std::map<Phase, std::map<std::pair<int, Activity>, std::int64_t>> shares_;
};

double percent(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? 100 * static_cast<double>(part) / static_cast<double>(whole) : 0;
}

struct Extent {
  std::int64_t begin_ns = std::numeric_limits<std::int64_t>::max(), end_ns = 0;
};

Extent measured_extent(const MainThreads& threads) {
  Extent extent;
  for (const std::vector<Span>& lane : threads.lanes())
    for (const Span& span : lane) {
      if (!measured(span) || activity_of(span.kind) == Activity::kWait) continue;
      extent.begin_ns = std::min(extent.begin_ns, span.begin_ns);
      extent.end_ns = std::max(extent.end_ns, span.end_ns);
    }
  return extent;
}

}  // namespace

std::vector<CriticalPath> critical_paths(const std::vector<RankTimeline>& ranks) {
  const MainThreads threads(ranks);
  return Walk(threads).run();
}

std::string describe(const CriticalPath& path) {
  constexpr std::size_t kMostShares = 6;
  constexpr double kLeastPercent = 2;
  std::string text;
  std::int64_t said_ns = 0;
  std::size_t said = 0;
  for (const PathShare& share : path.shares) {
    const double part = percent(share.ns, path.total_ns);
    if (said == kMostShares || part < kLeastPercent) break;
    const char* separator = said == 0 ? "" : "; ";
    if (share.activity == Activity::kWait) {
      text += fmt::format("{}{:.0f} % waiting for rank {}'s messages", separator, part, share.rank);
    } else {
      text += fmt::format("{}rank {}'s {}: {:.0f} %{}", separator, share.rank,
                          share.activity == Activity::kOther ? "time between spans"
                                                             : activity_label(share.activity),
                          part, said == 0 ? " of the path" : "");
    }
    said_ns += share.ns;
    ++said;
  }
  const double rest = percent(path.total_ns - said_ns, path.total_ns);
  if (rest >= 0.5) text += fmt::format("{}{:.0f} % elsewhere", said == 0 ? "" : "; ", rest);
  return text;
}

std::vector<RankShare> rank_shares(const std::vector<RankTimeline>& ranks) {
  const MainThreads threads(ranks);
  const Extent extent = measured_extent(threads);
  std::vector<RankShare> result;
  if (extent.end_ns <= extent.begin_ns) return result;
  for (std::size_t r = 0; r < threads.lanes().size(); ++r) {
    RankShare& share = result.emplace_back();
    share.rank = threads.number(r);
    share.total_ns = extent.end_ns - extent.begin_ns;
    std::int64_t reached = extent.begin_ns, known = 0;
    std::map<int, std::int64_t> senders;
    for (std::size_t i = 0; i < threads.lanes()[r].size(); ++i) {
      const Span& span = threads.lanes()[r][i];
      // Clipped to what was measured, and to what no span before it has covered.
      const std::int64_t begin = std::max(span.begin_ns, reached);
      const std::int64_t end = std::min(span.end_ns, extent.end_ns);
      if (end <= begin) continue;
      const Activity activity = activity_of(span.kind);
      share.by_activity[static_cast<int>(activity)] += end - begin;
      known += end - begin;
      reached = end;
      if (activity != Activity::kWait) continue;
      if (const auto send = threads.sender_of({r, i}))
        senders[threads.number(send->rank)] += end - begin;
    }
    share.by_activity[static_cast<int>(Activity::kOther)] += share.total_ns - known;
    for (const auto& [rank, ns] : senders)
      share.waited_for.push_back({.rank = rank, .activity = Activity::kWait, .ns = ns});
    std::stable_sort(share.waited_for.begin(), share.waited_for.end(),
                     [](const PathShare& a, const PathShare& b) { return a.ns > b.ns; });
  }
  return result;
}

}  // namespace stagecoach
