#include "launcher/hosts.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <set>
#include <thread>

#include "base/error.h"
#include "base/host.h"
#include "launcher/addresses.h"

namespace stagecoach {
namespace {

std::set<std::string> own_addresses() {
  std::set<std::string> found{"127.0.0.1", "localhost"};
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return found;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != AF_INET) continue;
    char text[INET_ADDRSTRLEN] = {};
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr, text,
                sizeof(text));
    found.insert(text);
  }
  ::freeifaddrs(list);
  return found;
}

// What a host with one of these addresses may call this machine: the address that packets to it
// carry.
std::string address_towards(const std::vector<std::string>& addresses) {
  for (const std::string& address : addresses) {
    sockaddr_in other{}, own{};
    other.sin_family = AF_INET;
    other.sin_port = htons(9);  // any: nothing is sent
    if (::inet_pton(AF_INET, address.c_str(), &other.sin_addr) != 1) continue;
    const int socket = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = sizeof(own);
    const bool known =
        ::connect(socket, reinterpret_cast<const sockaddr*>(&other), sizeof(other)) == 0 &&
        ::getsockname(socket, reinterpret_cast<sockaddr*>(&own), &size) == 0;
    ::close(socket);
    char text[INET_ADDRSTRLEN] = {};
    if (known && ::inet_ntop(AF_INET, &own.sin_addr, text, sizeof(text)) != nullptr) return text;
  }
  return "127.0.0.1";
}

// Of each host of the job, all at once: a name server that is silent costs the same for all.
std::vector<Lookup> look_up(const std::vector<HostSpec>& specs, const Interrupted& interrupted) {
  std::vector<std::future<Lookup>> answers;
  for (const HostSpec& spec : specs)
    answers.push_back(std::async(std::launch::async, [&] {
      return addresses_of(spec.reached_as(), kConnectPatience, interrupted);
    }));
  std::vector<Lookup> lookups;
  for (std::future<Lookup>& answer : answers) lookups.push_back(answer.get());
  return lookups;
}

bool is_own(const Lookup& lookup, const std::set<std::string>& own) {
  return std::any_of(lookup.addresses.begin(), lookup.addresses.end(),
                     [&](const std::string& address) {
                       return own.contains(address) || address.starts_with("127.");
                     });
}

void reach(Host& host, const LaunchJob& job, const TemporaryAgentOrder& order,
           const Interrupted& interrupted) {
  host.agent = {host.spec.reached_as(), job.port};
  if (host.here || job.key.empty()) {
    Words ssh;
    if (!host.here) {
      ssh = job.ssh;
      ssh.push_back(host.spec.reached_as());
    }
    host.temporary = std::make_unique<TemporaryAgent>(host.name(), ssh, order, interrupted);
    host.agent.port = host.temporary->port();
  }
  host.client = std::make_unique<AgentClient>(host.agent, order.key, host.name(), interrupted);
  if (in_a_home(host.store))
    host.store = host.client->facts({}).with_home(host.store, host.name() + ": store");
  host.facts = host.client->facts(host.store);
}

template <typename Work>
void attempt(Host& host, const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    host.problem = error;
  } catch (const std::exception& exception) {
    host.problem =
        Error(ErrorKind::kInternal, fmt::format("{}: {}", host.name(), exception.what()));
  }
}

}  // namespace

Hosts::Hosts(const LaunchJob& job, const HostsOptions& options)
    : key_(job.key.empty() ? Key::random() : read_key_file(job.key)),
      interrupted_(options.interrupted) {
  const std::set<std::string> own = own_addresses();
  const std::string name = host_name("localhost");
  const std::string source_store =
      std::filesystem::absolute(job.run_value("store")).lexically_normal();
  bool among_them = false;
  const std::vector<Lookup> lookups = look_up(job.cluster.hosts, interrupted_);
  for (const HostSpec& spec : job.cluster.hosts) {
    const Lookup& lookup = lookups[hosts_.size()];
    Host& host = hosts_.emplace_back();
    host.spec = spec;
    host.store = job.store_of(spec);
    host.here = spec.reached_as() == name || is_own(lookup, own);
    if (host.here) host.store = with_home(host.store, host.name() + ": store");
    if (!host.here || among_them || host.store != source_store) continue;
    among_them = true;
    source_index_ = hosts_.size() - 1;
  }
  if (!among_them) {
    source_.emplace();
    source_->spec.name = name;
    const auto other =
        std::find_if(hosts_.begin(), hosts_.end(), [](const Host& host) { return !host.here; });
    source_->spec.address =
        other == hosts_.end()
            ? "127.0.0.1"
            : address_towards(lookups[static_cast<std::size_t>(other - hosts_.begin())].addresses);
    source_->store = source_store;
    source_->here = true;
  }
  std::vector<std::jthread> threads;  // joined when it goes
  const auto start = [&](Host& host) {
    TemporaryAgentOrder order{.key = key_, .stores = {host.store}};
    if (host.here) {
      // Agents of this machine copy from each other's stores.
      order.stores.emplace_back(source_store);
      order.state = options.state;
    }
    threads.emplace_back(
        [&, order] { attempt(host, [&] { reach(host, job, order, interrupted_); }); });
  };
  for (Host& host : hosts_) start(host);
  if (source_) start(*source_);
  threads.clear();
  try {
    throw_if_interrupted(interrupted_);
    if (source().problem) throw Error(*source().problem);
  } catch (const Error&) {
    let_go();
    throw;
  }
}

Hosts::~Hosts() {
  let_go();
}

// Of all at once: an ssh whose host has gone takes some seconds to be ended.
void Hosts::let_go() {
  std::vector<std::jthread> threads;  // joined when it goes
  for (Host& host : hosts_)
    threads.emplace_back([&host] {
      host.client.reset();
      host.temporary.reset();
    });
}

void Hosts::each(const std::function<void(Host&)>& work) {
  {
    std::vector<std::jthread> threads;  // joined when it goes
    for (Host& host : hosts_)
      if (host.reached()) threads.emplace_back([&] { attempt(host, [&] { work(host); }); });
  }
  throw_interrupt();
}

void Hosts::throw_interrupt() const {
  for (const Host& host : hosts_)
    if (host.problem && host.problem->kind() == ErrorKind::kInterrupted) throw Error(*host.problem);
}

void Hosts::reconnect() {
  each([this](Host& host) {
    host.client = std::make_unique<AgentClient>(host.agent, key_, host.name(), interrupted_);
  });
}

void Hosts::throw_problems(const std::string& what) const {
  std::vector<const Host*> troubled;
  for (const Host& host : hosts_)
    if (host.problem) troubled.push_back(&host);
  if (troubled.empty()) return;
  throw_interrupt();
  if (troubled.size() == 1) throw Error(*troubled.front()->problem);
  std::string text = fmt::format("{}: {} of {} hosts", what, troubled.size(), hosts_.size());
  for (const Host* host : troubled) text += fmt::format("\n  {}", host->problem->what());
  throw Error(troubled.front()->problem->kind(), text, troubled.front()->problem->hint());
}

}  // namespace stagecoach
