#include "launcher/addresses.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "base/clock.h"
#include "base/error.h"

namespace stagecoach {
namespace {

bool is_address(const std::string& host) {
  in6_addr bits{};
  return ::inet_pton(AF_INET, host.c_str(), &bits) == 1 ||
         ::inet_pton(AF_INET6, host.c_str(), &bits) == 1;
}

// Outlives whoever asked, for as long as the resolver takes.
struct Question {
  std::mutex mutex;
  std::condition_variable answered;
  std::optional<Lookup> answer;
};

}  // namespace

Lookup ask_the_system(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &list); error != 0)
    return {.addresses = {}, .problem = ::gai_strerror(error)};
  Lookup lookup;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    char text[INET6_ADDRSTRLEN] = {};
    const void* const bits =
        entry->ai_family == AF_INET
            ? static_cast<const void*>(&reinterpret_cast<sockaddr_in*>(entry->ai_addr)->sin_addr)
        : entry->ai_family == AF_INET6
            ? static_cast<const void*>(&reinterpret_cast<sockaddr_in6*>(entry->ai_addr)->sin6_addr)
            : nullptr;
    if (bits != nullptr && ::inet_ntop(entry->ai_family, bits, text, sizeof(text)) != nullptr)
      lookup.addresses.emplace_back(text);
  }
  ::freeaddrinfo(list);
  if (lookup.addresses.empty()) lookup.problem = "no address";
  return lookup;
}

Lookup addresses_of(const std::string& host, Seconds patience, const Interrupted& interrupted,
                    const Resolver& resolver) {
  constexpr auto kLook = std::chrono::milliseconds(50);
  if (is_address(host)) return {.addresses = {host}, .problem = {}};
  const auto question = std::make_shared<Question>();
  std::thread([question, host, resolver] {
    Lookup found = resolver(host);
    const std::lock_guard lock(question->mutex);
    question->answer = std::move(found);
    question->answered.notify_all();
  }).detach();
  const auto deadline = Clock::now() + patience;
  std::unique_lock lock(question->mutex);
  while (!question->answer) {
    if (Clock::now() >= deadline)
      return {.addresses = {},
              .problem = fmt::format("no name server answers for {:.0f} s", patience.count())};
    question->answered.wait_for(lock, kLook);
    lock.unlock();
    throw_if_interrupted(interrupted);
    lock.lock();
  }
  return *question->answer;
}

}  // namespace stagecoach
