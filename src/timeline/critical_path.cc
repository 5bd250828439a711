#include "timeline/critical_path.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "base/error.h"
#include "timeline/rank_lanes.h"
#include "timeline/stretches.h"

namespace stagecoach {
namespace {

class Walk {
 public:
  Walk(const RankLanes& lanes, std::vector<Stretch> stretches)
      : lanes_(lanes), stretches_(std::move(stretches)) {
    for (std::size_t rank = 0; rank < lanes.ranks(); ++rank)
      visited_.emplace_back(lanes.main(rank).size(), false);
  }

  std::vector<CriticalPath> run() {
    std::optional<Place> place = last_measured();
    if (place) reached_ns_ = lanes_.at(*place).end_ns;
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
    for (std::size_t rank = 0; rank < lanes_.ranks(); ++rank) {
      const std::vector<Span>& lane = lanes_.main(rank);
      for (std::size_t i = 0; i < lane.size(); ++i) {
        const bool work = activity_of(lane[i].kind) != Activity::kWait;
        if (work && measured(lane[i]) && (!last || lane[i].end_ns > lanes_.at(*last).end_ns))
          last = Place{rank, i};
      }
    }
    return last;
  }

  // Accounts for what lies before reached_ns_ at `place`, and says where the path goes on.
  std::optional<Place> step(const Place& place) {
    visited_[place.rank][place.index] = true;
    const Span& span = lanes_.at(place);
    const Activity activity = activity_of(span.kind);
    if (activity == Activity::kWait) {
      // Unmeasured clocks could close a loop; a span is walked through once.
      const std::optional<Place> send = lanes_.sender_of(place);
      if (send && !visited_[send->rank][send->index]) {
        const Span& sent = lanes_.at(*send);
        account(sent, lanes_.number(send->rank), Activity::kWait, sent.end_ns);
        return send;
      }
    }
    if (activity == Activity::kWeightWait)
      if (const std::optional<Place> read = lanes_.read_of(place)) return along_the_disk(*read);
    account(span, lanes_.number(place.rank), path_activity(activity), span.begin_ns);
    if (place.index == 0) return std::nullopt;
    return arrive({place.rank, place.index - 1});
  }

  // Back through reads for as long as the disk has not rested: had it been faster, the weights
  // would have come earlier, whatever the main thread did meanwhile. A disk that rested had no
  // memory to read into; the path goes on with what the main thread did until it gave some back.
  // So with copies to a device, and from a copy to the read that it has waited for.
  std::optional<Place> along_the_disk(Place read) {
    while (true) {
      const Span& span = lanes_.reads(read.rank)[read.index];
      account_beside(lanes_.number(read.rank), activity_of(span.kind), span.begin_ns);
      const std::optional<Place> before = lanes_.read_before(read);
      if (!before) break;
      read = *before;
    }
    const std::optional<Place> main = lanes_.main_at(read.rank, reached_ns_);
    // The wait itself began before a read that it has had to wait for in whole.
    for (std::size_t index = main ? main->index + 1 : 0; index-- > 0;)
      if (!visited_[read.rank][index]) return arrive({read.rank, index});
    return std::nullopt;
  }

  // At a span of a main thread, from what came after it there.
  std::optional<Place> arrive(const Place& place) {
    if (visited_[place.rank][place.index]) return std::nullopt;
    const Span& span = lanes_.at(place);
    account(span, lanes_.number(place.rank), Activity::kOther, span.end_ns);
    return place;
  }

  static Activity path_activity(Activity activity) {
    return activity == Activity::kWeightWait ? Activity::kRead : activity;
  }

  void account(const Span& owner, int rank, Activity activity, std::int64_t until_ns) {
    const std::int64_t ns = reached_ns_ - std::min(until_ns, reached_ns_);
    reached_ns_ -= ns;
    if (ns > 0 && measured(owner)) shares_[owner.phase][{rank, activity}] += ns;
  }

  // Reads and copies carry no phase: they count for that which was being measured.
  void account_beside(int rank, Activity activity, std::int64_t until_ns) {
    const std::int64_t end = reached_ns_, begin = std::min(until_ns, end);
    reached_ns_ = begin;
    auto stretch =
        std::lower_bound(stretches_.begin(), stretches_.end(), begin,
                         [](const Stretch& s, std::int64_t ns) { return s.range.end_ns <= ns; });
    for (; stretch != stretches_.end() && stretch->range.begin_ns < end; ++stretch)
      shares_[stretch->phase][{rank, activity}] +=
          std::min(end, stretch->range.end_ns) - std::max(begin, stretch->range.begin_ns);
  }

  const RankLanes& lanes_;
  const std::vector<Stretch> stretches_;
  std::vector<std::vector<bool>> visited_;
  std::int64_t reached_ns_ = 0;  // everything after it is accounted for
  std::map<Phase, std::map<std::pair<int, Activity>, std::int64_t>> shares_;
};

double percent(std::int64_t part, std::int64_t whole) {
  return whole > 0 ? 100 * static_cast<double>(part) / static_cast<double>(whole) : 0;
}

const char* path_label(Activity activity) {
  if (activity == Activity::kRead) return "disk";
  if (activity == Activity::kCopy) return "bus";
  return activity == Activity::kOther ? "time between spans" : activity_label(activity);
}

}  // namespace

std::vector<CriticalPath> critical_paths(const std::vector<RankTimeline>& ranks) {
  const RankLanes lanes(ranks);
  return Walk(lanes, without_overlap(measured_stretches(ranks))).run();
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
      text += fmt::format("{}rank {}'s {}: {:.0f} %", separator, share.rank,
                          path_label(share.activity), part);
    }
    // Decode goes in steps, prefill in passes.
    if (said == 0) text += path.phase == Phase::kDecode ? " of the step" : " of the pass";
    said_ns += share.ns;
    ++said;
  }
  const double rest = percent(path.total_ns - said_ns, path.total_ns);
  if (rest >= 0.5) text += fmt::format("{}{:.0f} % elsewhere", said == 0 ? "" : "; ", rest);
  return text;
}

}  // namespace stagecoach
