#include "pipeline/network_probe.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/archive.h"
#include "base/clock.h"
#include "base/error.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kLinks = archive_magic("LINK");
constexpr std::size_t kSmallMessage = 8;

// The first byte of every message here.
enum class Kind : std::uint8_t {
  kPing,  // answered with kPong
  kPong,
  kPart,  // of a long transfer; not answered
  kTurn,  // rank 0: measure from yourself now
  kDone,  // to rank 0: the links from here follow
  kEnd,   // rank 0: nobody measures any more
};

std::vector<std::byte> make(Kind kind, std::size_t bytes = kSmallMessage) {
  std::vector<std::byte> payload(bytes);
  payload[0] = static_cast<std::byte>(kind);
  return payload;
}

class NetworkProbe {
 public:
  NetworkProbe(Transport& transport, const NetworkProbeOptions& options)
      : transport_(transport), options_(options) {}

  // Ranks take turns, so that no pair disturbs another; those that wait answer.
  std::vector<LinkRate> lead() {
    std::vector<LinkRate> all = links_from_here();
    for (int r = 1; r < transport_.size(); ++r) {
      send(r, make(Kind::kTurn));
      const Message done = answer_until(Kind::kDone);
      const auto links = from_archive<std::vector<LinkRate>>(
          kLinks, std::span(done.payload).subspan(1), "network rates");
      all.insert(all.end(), links.begin(), links.end());
    }
    for (int r = 1; r < transport_.size(); ++r) send(r, make(Kind::kEnd));
    return all;
  }

  std::vector<LinkRate> follow() {
    answer_until(Kind::kTurn);
    std::vector<LinkRate> links = links_from_here();
    std::vector<std::byte> done = to_archive(kLinks, links);
    done.insert(done.begin(), static_cast<std::byte>(Kind::kDone));
    send(0, std::move(done));
    answer_until(Kind::kEnd);
    return links;
  }

 private:
  void send(int to, std::vector<std::byte> payload) {
    transport_.send(to, Channel::kData, std::move(payload));
  }

  Message receive() {
    while (true) {
      if (options_.interrupted != nullptr && *options_.interrupted)
        throw Error(ErrorKind::kInterrupted, "interrupted");
      auto message = transport_.receive(Channel::kData, Clock::now() + std::chrono::seconds(1));
      if (!message) continue;
      if (message->payload.empty())
        throw Error(ErrorKind::kInternal, "an empty message came while the network was probed");
      return std::move(*message);
    }
  }

  static Kind kind_of(const Message& message) { return static_cast<Kind>(message.payload[0]); }

  // Answers others' pings until rank 0 or a rank that is done says `awaited`.
  Message answer_until(Kind awaited) {
    while (true) {
      Message message = receive();
      const Kind kind = kind_of(message);
      if (kind == awaited) return message;
      if (kind == Kind::kPing) send(message.source, make(Kind::kPong));
    }
  }

  void expect_pong(int peer) {
    const Message message = receive();
    if (message.source != peer || kind_of(message) != Kind::kPong)
      throw Error(ErrorKind::kInternal,
                  fmt::format("expected an answer of rank {}, found message {} of rank {}", peer,
                              static_cast<int>(kind_of(message)), message.source));
  }

  double round_trip_seconds(int peer) {
    const std::int64_t begin_ns = now_ns();
    send(peer, make(Kind::kPing));
    expect_pong(peer);
    return seconds_since(begin_ns);
  }

  // Seconds from the first message's sending to the answer of the last.
  double transfer_seconds(int peer, int messages) {
    std::vector<std::vector<std::byte>> payloads;
    payloads.reserve(static_cast<std::size_t>(messages));
    for (int i = 0; i < messages; ++i)
      payloads.push_back(
          make(i + 1 == messages ? Kind::kPing : Kind::kPart, options_.message_bytes));
    const std::int64_t begin_ns = now_ns();
    for (std::vector<std::byte>& payload : payloads) send(peer, std::move(payload));
    expect_pong(peer);
    return seconds_since(begin_ns);
  }

  LinkRate measure(int peer) {
    LinkRate link{.from = transport_.rank(), .to = peer};
    transfer_seconds(peer, 1);  // connections and buffers come to be
    std::vector<double> trips;
    trips.reserve(static_cast<std::size_t>(options_.pings));
    for (int i = 0; i < options_.pings; ++i) trips.push_back(round_trip_seconds(peer));
    const auto middle = trips.begin() + options_.pings / 2;
    std::nth_element(trips.begin(), middle, trips.end());
    link.latency_seconds = *middle / 2;
    const double bytes =
        static_cast<double>(options_.message_bytes) * static_cast<double>(options_.messages);
    for (int i = 0; i < options_.rounds; ++i) {
      const double seconds = transfer_seconds(peer, options_.messages);
      // The answer's way back is not the transfer's.
      const double there = std::max(seconds - link.latency_seconds, seconds / 2);
      link.bytes_per_second = std::max(link.bytes_per_second, bytes / there);
    }
    return link;
  }

  std::vector<LinkRate> links_from_here() {
    std::vector<LinkRate> links;
    for (int peer = 0; peer < transport_.size(); ++peer)
      if (peer != transport_.rank()) links.push_back(measure(peer));
    return links;
  }

  Transport& transport_;
  const NetworkProbeOptions& options_;
};

}  // namespace

std::vector<LinkRate> probe_network(Transport& transport, const NetworkProbeOptions& options) {
  NetworkProbe probe(transport, options);
  return transport.rank() == 0 ? probe.lead() : probe.follow();
}

}  // namespace stagecoach
