#include "pipeline/clock_sync.h"

#include <utility>

#include "base/archive.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kPing = archive_magic("PING");
constexpr std::uint32_t kUsage = archive_magic("USAG");
constexpr int kPings = 8;

struct Ping {
  bool last = false;
  std::int64_t remote_ns = 0;  // in the answer

  template <class Archive>
  void serialize(Archive& archive) {
    archive(last, remote_ns);
  }
};

ClockOffset measure(ControlChannel& control, int peer) {
  std::vector<PingSample> samples;
  for (int i = 0; i < kPings; ++i) {
    PingSample sample;
    sample.sent_ns = now_ns();
    control.send(peer, to_archive(kPing, Ping{.last = i + 1 == kPings}));
    sample.remote_ns =
        from_archive<Ping>(kPing, control.receive_from(peer), "clock ping").remote_ns;
    sample.received_ns = now_ns();
    samples.push_back(sample);
  }
  return estimate_clock_offset(samples);
}

}  // namespace

std::vector<ClockOffset> measure_clocks(ControlChannel& control) {
  std::vector<ClockOffset> offsets;
  if (control.rank() == 0) {
    offsets.resize(static_cast<std::size_t>(control.size()));
    for (int peer = 1; peer < control.size(); ++peer)
      offsets[static_cast<std::size_t>(peer)] = measure(control, peer);
    return offsets;
  }
  for (bool last = false; !last;) {
    last = from_archive<Ping>(kPing, control.receive_from(0), "clock ping").last;
    control.send(0, to_archive(kPing, Ping{.remote_ns = now_ns()}));
  }
  return offsets;
}

std::vector<RankTimeline> gather_timelines(ControlChannel& control, Timeline& timeline,
                                           const RankUsage& usage,
                                           const std::vector<ClockOffset>& begin,
                                           const std::vector<ClockOffset>& end) {
  std::vector<RankTimeline> all;
  if (control.rank() != 0) {
    control.send(0, to_archive(kUsage, usage));
    control.send(0, encode_spans(timeline.take()));
    return all;
  }
  for (int r = 0; r < control.size(); ++r) {
    RankTimeline rank;
    rank.rank = r;
    rank.host = control.transport().host(r);
    rank.clock = {begin[static_cast<std::size_t>(r)], end[static_cast<std::size_t>(r)]};
    rank.usage =
        r == 0 ? usage : from_archive<RankUsage>(kUsage, control.receive_from(r), "rank usage");
    rank.spans = r == 0 ? timeline.take() : decode_spans(control.receive_from(r));
    all.push_back(std::move(rank));
  }
  return all;
}

}  // namespace stagecoach
