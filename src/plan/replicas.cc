#include "plan/replicas.h"

#include "base/error.h"

namespace stagecoach {
namespace {

struct Heirs {
  std::int64_t middle = 0;  // layers before it go to the first
  int before = 0, behind = 0;
};

Heirs heirs_of(const StagePlan& plan, std::size_t window) {
  const Window& own = plan.windows[window];
  const bool first = window == 0, last = window + 1 == plan.windows.size();
  Heirs heirs;
  heirs.before = first ? -1 : plan.windows[window - 1].rank;
  heirs.behind = last ? -1 : plan.windows[window + 1].rank;
  // Windows of one layer go to one side in one round and to the other in the next.
  const auto round = static_cast<std::int64_t>(window) / plan.ranks;
  heirs.middle = own.begin + (own.end - own.begin + round % 2) / 2;
  if (first) heirs.middle = own.begin;
  if (last) heirs.middle = own.end;
  return heirs;
}

}  // namespace

Replicas replicas_of(const StagePlan& plan) {
  STAGECOACH_CHECK(plan.ranks >= 2);
  Replicas replicas;
  for (std::size_t i = 0; i < plan.windows.size(); ++i) {
    const Heirs heirs = heirs_of(plan, i);
    for (std::int64_t layer = plan.windows[i].begin; layer < plan.windows[i].end; ++layer)
      replicas.layers.push_back(layer < heirs.middle ? heirs.before : heirs.behind);
  }
  replicas.embedding = plan.windows[1].rank;
  replicas.head = plan.windows[plan.windows.size() - 2].rank;
  return replicas;
}

StagePlan take_over(const StagePlan& plan, int lost) {
  STAGECOACH_CHECK(plan.ranks >= 2 && lost >= 0 && lost < plan.ranks);
  StagePlan left{.ranks = plan.ranks - 1, .windows = {}};
  const auto add = [&](std::int64_t begin, std::int64_t end, int old_rank) {
    if (begin == end) return;
    const int rank = old_rank > lost ? old_rank - 1 : old_rank;
    if (!left.windows.empty() && left.windows.back().rank == rank)
      left.windows.back().end = end;
    else
      left.windows.push_back({.begin = begin, .end = end, .rank = rank});
  };
  for (std::size_t i = 0; i < plan.windows.size(); ++i) {
    const Window& window = plan.windows[i];
    if (window.rank != lost) {
      add(window.begin, window.end, window.rank);
      continue;
    }
    const Heirs heirs = heirs_of(plan, i);
    add(window.begin, heirs.middle, heirs.before);
    add(heirs.middle, window.end, heirs.behind);
  }
  return left;
}

}  // namespace stagecoach
