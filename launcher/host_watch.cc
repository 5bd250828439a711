#include "launcher/host_watch.h"

#include <algorithm>
#include <optional>

#include "launcher/pause.h"

namespace stagecoach {
namespace {

constexpr Seconds kPatience{5};
constexpr int kPingsToACount = 3;  // of ranks, for which an agent looks at every process

}  // namespace

HostWatch::HostWatch(const std::vector<WatchedHost>& hosts, const Key& key,
                     const Interrupted& interrupted)
    : ranks_(hosts.size()) {
  // A host that is held wants to be pinged at once, however long others take.
  std::vector<std::promise<void>> held(hosts.size());
  for (std::size_t i = 0; i < hosts.size(); ++i)
    threads_.emplace_back([this, i, host = hosts[i], key, interrupted, &held] {
      watch(i, host, key, interrupted, held[i]);
    });
  std::exception_ptr failure;
  for (std::promise<void>& promise : held) try {
      promise.get_future().get();
    } catch (const std::exception&) {
      if (!failure) failure = std::current_exception();
    }
  if (!failure) return;
  stop_ = true;
  for (std::thread& thread : threads_) thread.join();
  std::rethrow_exception(failure);
}

HostWatch::~HostWatch() {
  stop_ = true;
  for (std::thread& thread : threads_) thread.join();
}

void HostWatch::watch(std::size_t number, const WatchedHost& host, const Key& key,
                      const Interrupted& interrupted, std::promise<void>& held) {
  std::optional<AgentClient> client;
  bool holds = false;
  try {
    client.emplace(host.agent, key, host.name, [this, &holds, &interrupted] {
      return stop_ || (!holds && interrupted && interrupted());
    });
    client->hold(host.job, host.files);
  } catch (const std::exception&) {
    held.set_exception(std::current_exception());
    return;
  }
  holds = true;
  held.set_value();
  try {
    for (int pings = 1; !stop_; ++pings) {
      client->ping(kPatience);
      if (pings % kPingsToACount == 0) take_ranks(number, client->ranks(host.job));
      pause_a_second(stop_);
    }
  } catch (const std::exception& exception) {
    if (stop_) return;
    const std::lock_guard lock(mutex_);
    lost_.emplace_back(number, exception.what());
  }
}

void HostWatch::take_ranks(std::size_t host, std::optional<int> ranks) {
  const std::lock_guard lock(mutex_);
  ranks_[host] = ranks;
  had_ranks_ = had_ranks_ || ranks.value_or(0) > 0;
  const bool none = std::all_of(ranks_.begin(), ranks_.end(),
                                [](const std::optional<int>& count) { return count == 0; });
  if (!none) {
    deserted_.reset();
  } else if (!deserted_) {
    deserted_ = Clock::now();
  }
}

Seconds HostWatch::without_ranks() const {
  const std::lock_guard lock(mutex_);
  return deserted_ ? Seconds(Clock::now() - *deserted_) : Seconds(0);
}

bool HostWatch::had_ranks() const {
  const std::lock_guard lock(mutex_);
  return had_ranks_;
}

std::vector<std::size_t> HostWatch::lost() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::size_t> hosts;
  for (const auto& [host, reason] : lost_) hosts.push_back(host);
  return hosts;
}

std::string HostWatch::reason(std::size_t host) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(lost_.begin(), lost_.end(),
                                  [&](const auto& entry) { return entry.first == host; });
  return found == lost_.end() ? std::string() : found->second;
}

}  // namespace stagecoach
