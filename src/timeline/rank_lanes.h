// All ranks on one clock, as what comes after what: each rank's main thread, the reads of its disk,
// and which message or read ended a wait.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "timeline/report.h"

namespace stagecoach {

// Of the list of ranks, and of the rank's main thread or its reads.
struct Place {
  std::size_t rank = 0, index = 0;
};

class RankLanes {
 public:
  // A wait shorter than this found what it wanted there already: what remains is the cost of
  // looking. A disk that rests no longer than this between two reads has not rested.
  static constexpr std::int64_t kRealWaitNs = 20'000;

  explicit RankLanes(const std::vector<RankTimeline>& ranks);

  std::size_t ranks() const { return main_.size(); }
  int number(std::size_t rank) const { return numbers_[rank]; }
  // By beginning, on rank 0's clock.
  const std::vector<Span>& main(std::size_t rank) const { return main_[rank]; }
  // Copies to a device among them.
  const std::vector<Span>& reads(std::size_t rank) const { return reads_[rank]; }
  const Span& at(const Place& place) const { return main_[place.rank][place.index]; }

  // The send whose message ended the wait at `place`, a main thread's.
  std::optional<Place> sender_of(const Place& place) const;
  // The read, or the copy to a device, whose end ended the wait for weights at `place`.
  std::optional<Place> read_of(const Place& place) const;
  // The read that the one at `read` came after without a rest of the disk; of a copy the copy or
  // the read that it came after.
  std::optional<Place> read_before(const Place& read) const;
  // What the main thread of `rank` was doing at `ns`, or did last before it.
  std::optional<Place> main_at(std::size_t rank, std::int64_t ns) const;

 private:
  void add_reads(const std::vector<Span>& spans);

  std::vector<std::vector<Span>> main_, reads_;
  std::vector<std::vector<std::size_t>> reads_by_end_;
  // For each the read that ended last among those that began before it.
  static constexpr std::size_t kNone = ~std::size_t{0};
  std::vector<std::vector<std::size_t>> last_before_;
  std::vector<int> numbers_;
  std::vector<std::int64_t> uncertainty_ns_;
  std::map<std::int64_t, std::vector<Place>> sends_;  // by micro-batch, by beginning
};

}  // namespace stagecoach
