#include "launcher/host_watch.h"

#include <algorithm>
#include <optional>

#include "launcher/pause.h"

namespace stagecoach {
namespace {

constexpr Seconds kPatience{5};

}  // namespace

HostWatch::HostWatch(const std::vector<WatchedHost>& hosts, const Key& key,
                     const Interrupted& interrupted) {
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
    while (!stop_) {
      client->ping(kPatience);
      pause_a_second(stop_);
    }
  } catch (const std::exception& exception) {
    if (stop_) return;
    const std::lock_guard lock(mutex_);
    lost_.emplace_back(number, exception.what());
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
