#include "pipeline/clock_sync.h"

#include <utility>

#include "base/archive.h"
#include "pipeline/control_channel.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kPing = archive_magic("PING");
constexpr int kPings = 8;

struct Ping {
  bool last = false;
  std::int64_t remote_ns = 0;  // in the answer

  template <class Archive>
  void serialize(Archive& archive) {
    archive(last, remote_ns);
  }
};

Ping exchange(Transport& transport, int peer, const Ping& ping) {
  transport.send(peer, Channel::kControl, to_archive(kPing, ping));
  return from_archive<Ping>(kPing, receive_control(transport).payload, "clock ping");
}

ClockOffset measure(Transport& transport, int peer) {
  std::vector<PingSample> samples;
  for (int i = 0; i < kPings; ++i) {
    PingSample sample;
    sample.sent_ns = now_ns();
    sample.remote_ns = exchange(transport, peer, {.last = i + 1 == kPings}).remote_ns;
    sample.received_ns = now_ns();
    samples.push_back(sample);
  }
  return estimate_clock_offset(samples);
}

}  // namespace

std::vector<ClockOffset> measure_clocks(Transport& transport) {
  std::vector<ClockOffset> offsets;
  if (transport.rank() == 0) {
    offsets.resize(static_cast<std::size_t>(transport.size()));
    for (int peer = 1; peer < transport.size(); ++peer) offsets[static_cast<std::size_t>(peer)] = measure(transport, peer);
    return offsets;
  }
  for (bool last = false; !last;) {
    const Ping ping = from_archive<Ping>(kPing, receive_control(transport).payload, "clock ping");
    last = ping.last;
    transport.send(0, Channel::kControl, to_archive(kPing, Ping{.last = last, .remote_ns = now_ns()}));
  }
  return offsets;
}

std::vector<RankTimeline> gather_timelines(Transport& transport, Timeline& timeline,
                                           const std::vector<ClockOffset>& begin, const std::vector<ClockOffset>& end) {
  std::vector<RankTimeline> all;
  if (transport.rank() != 0) {
    transport.send(0, Channel::kControl, encode_spans(timeline.take()));
    return all;
  }
  all.resize(static_cast<std::size_t>(transport.size()));
  all[0].spans = timeline.take();
  for (int missing = transport.size() - 1; missing > 0; --missing) {
    const Message message = receive_control(transport);
    all.at(static_cast<std::size_t>(message.source)).spans = decode_spans(message.payload);
  }
  for (int r = 0; r < transport.size(); ++r) {
    RankTimeline& rank = all[static_cast<std::size_t>(r)];
    rank.rank = r;
    rank.host = transport.host(r);
    rank.clock = {begin[static_cast<std::size_t>(r)], end[static_cast<std::size_t>(r)]};
  }
  return all;
}

}  // namespace stagecoach
