#include "launcher/host_watch.h"

#include <algorithm>
#include <chrono>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr auto kInterval = std::chrono::milliseconds(1000);
constexpr Seconds kPatience{5};
constexpr auto kStep = std::chrono::milliseconds(100);

}  // namespace

HostWatch::HostWatch(const std::vector<WatchedHost>& hosts, const Key& key)
    : watches_(hosts.size()) {
  for (std::size_t i = 0; i < hosts.size(); ++i) {
    watches_[i].client = std::make_unique<AgentClient>(hosts[i].agent, key, hosts[i].name);
    watches_[i].client->hold(hosts[i].job);
  }
  for (std::size_t i = 0; i < hosts.size(); ++i)
    watches_[i].thread = std::thread([this, i] { watch(i); });
}

HostWatch::~HostWatch() {
  stop_ = true;
  for (Watch& watch : watches_) watch.thread.join();
}

void HostWatch::watch(std::size_t host) {
  try {
    while (!stop_) {
      watches_[host].client->ping(kPatience);
      for (auto slept = kStep; slept < kInterval && !stop_; slept += kStep)
        std::this_thread::sleep_for(kStep);
    }
  } catch (const std::exception& exception) {
    const std::lock_guard lock(mutex_);
    lost_.emplace_back(host, exception.what());
  }
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
