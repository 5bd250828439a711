#include "launcher/rank_count.h"

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "launcher/pause.h"

namespace stagecoach {

RankCount::RankCount(std::vector<WatchedHost> hosts, const Key& key)
    : hosts_(std::move(hosts)), key_(key), thread_([this] { run(); }) {}

RankCount::~RankCount() {
  stop_ = true;
  thread_.join();
}

void RankCount::run() {
  constexpr int kSecondsBetween = 5;  // until there are ranks, one
  std::vector<std::optional<AgentClient>> clients(hosts_.size());
  while (!stop_) {
    std::vector<std::optional<int>> counts(hosts_.size());
    for (std::size_t i = 0; i < hosts_.size() && !stop_; ++i) try {
        const WatchedHost& host = hosts_[i];
        if (!clients[i])
          clients[i].emplace(host.agent, key_, host.name, [this] { return stop_.load(); });
        counts[i] = clients[i]->ranks(host.job);
      } catch (const std::exception& exception) {  // the watch knows whether it is lost
        spdlog::debug("{}: {}", hosts_[i].name, exception.what());
        clients[i].reset();
      }
    if (stop_) return;
    take(counts);
    const int seconds = had_ranks() ? kSecondsBetween : 1;
    for (int i = 0; i < seconds && !stop_; ++i) pause_a_second(stop_);
  }
}

void RankCount::take(const std::vector<std::optional<int>>& counts) {
  const std::lock_guard lock(mutex_);
  const auto all_are = [&](const auto& test) {
    return std::all_of(counts.begin(), counts.end(), test);
  };
  had_ranks_ = had_ranks_ || !all_are([](const auto& count) { return count.value_or(0) == 0; });
  if (!all_are([](const auto& count) { return count == 0; })) {
    deserted_.reset();
  } else if (!deserted_) {
    deserted_ = Clock::now();
  }
}

bool RankCount::had_ranks() const {
  const std::lock_guard lock(mutex_);
  return had_ranks_;
}

Seconds RankCount::without_ranks() const {
  const std::lock_guard lock(mutex_);
  return deserted_ ? Seconds(Clock::now() - *deserted_) : Seconds(0);
}

}  // namespace stagecoach
