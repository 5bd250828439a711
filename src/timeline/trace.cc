// Chrome's trace event format ("Trace Event Format", Google, 2016), which Perfetto reads: complete
// events with times in microseconds. A process is a rank, a thread is a lane.
#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "base/json.h"
#include "timeline/report.h"

namespace stagecoach {
namespace {

enum Lane { kCompute, kDisk, kNetwork, kBus, kLanes };
constexpr const char* kLaneNames[kLanes] = {"compute", "disk", "network", "to device"};

Lane lane_of(SpanKind kind) {
  switch (kind) {
    case SpanKind::kRead:
    case SpanKind::kVerify:
      return kDisk;
    case SpanKind::kSend:
      return kNetwork;
    case SpanKind::kCopy:
      return kBus;
    default:
      return kCompute;
  }
}

// Microseconds with nanosecond digits, in integers: a double would lose them after some days of
// uptime.
std::string microseconds(std::int64_t ns) {
  return fmt::format("{}.{:03}", ns / 1000, ns % 1000);
}

class TraceWriter {
 public:
  explicit TraceWriter(std::int64_t origin_ns) : origin_ns_(origin_ns) {}

  void add_rank(const RankTimeline& rank) {
    const std::string name = Json(fmt::format("rank {} on {}", rank.rank, rank.host))
                                 .dump(-1, ' ', false, Json::error_handler_t::replace);
    metadata(rank.rank, 0, "process_name", fmt::format("\"name\":{}", name));
    metadata(rank.rank, 0, "process_sort_index", fmt::format("\"sort_index\":{}", rank.rank));
    std::vector<std::size_t> order(rank.spans.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return rank.spans[a].begin_ns < rank.spans[b].begin_ns;
    });
    // Events of one thread must not overlap, but reads and messages do: each lane has as many
    // threads as it has spans at once. rows[lane][i] is when row i becomes free.
    std::vector<std::int64_t> rows[kLanes];
    for (const std::size_t i : order) {
      const Span& span = rank.spans[i];
      const Lane lane = lane_of(span.kind);
      std::vector<std::int64_t>& ends = rows[lane];
      auto row = std::find_if(ends.begin(), ends.end(),
                              [&](std::int64_t end) { return end <= span.begin_ns; });
      if (row == ends.end()) {
        row = ends.insert(ends.end(), 0);
        name_row(rank.rank, lane, ends.size() - 1);
      }
      *row = span.end_ns;
      event(rank, span, thread_id(lane, static_cast<std::size_t>(row - ends.begin())));
    }
  }

  std::string finish(const std::string& about) && {
    return fmt::format(
        "{{\"traceEvents\":[{}\n],\"displayTimeUnit\":\"ms\",\"otherData\":{{\"origin_ns\":{}{}}}}}"
        "\n",
        events_, origin_ns_, about);
  }

 private:
  // compute 1, disk 2, network 3, and 12, 22, … for a lane's further rows.
  static std::size_t thread_id(Lane lane, std::size_t row) {
    return static_cast<std::size_t>(lane) + 1 + 10 * row;
  }

  void append(const std::string& event) {
    events_ += events_.empty() ? "\n" : ",\n";
    events_ += event;
  }

  void metadata(int rank, std::size_t thread, const char* name, const std::string& args) {
    append(fmt::format(R"({{"ph":"M","pid":{},"tid":{},"name":"{}","args":{{{}}}}})", rank, thread,
                       name, args));
  }

  void name_row(int rank, Lane lane, std::size_t row) {
    const std::size_t thread = thread_id(lane, row);
    const std::string number = row == 0 ? "" : fmt::format(" {}", row + 1);
    metadata(rank, thread, "thread_name",
             fmt::format("\"name\":\"{}{}\"", kLaneNames[lane], number));
    metadata(rank, thread, "thread_sort_index",
             fmt::format("\"sort_index\":{}", static_cast<std::size_t>(lane) * 1000 + row));
  }

  void event(const RankTimeline& rank, const Span& span, std::size_t thread) {
    const std::string name = span.layer < 0
                                 ? std::string(span_kind_name(span.kind))
                                 : fmt::format("{} {}", span_kind_name(span.kind), span.layer);
    // Both ends are mapped, so that a span keeps its neighbours even where the clocks' rates
    // differ.
    const std::int64_t begin = rank.to_rank0(span.begin_ns) - origin_ns_;
    const std::int64_t duration =
        std::max<std::int64_t>(0, rank.to_rank0(span.end_ns) - origin_ns_ - begin);
    append(fmt::format(
        R"({{"ph":"X","pid":{},"tid":{},"ts":{},"dur":{},"name":"{}","cat":"{}","args":{{{}}}}})",
        rank.rank, thread, microseconds(begin), microseconds(duration), name,
        phase_name(span.phase), arguments(span)));
  }

  static std::string arguments(const Span& span) {
    std::string args = fmt::format("\"pass\":{}", span.pass);
    const auto add = [&](const char* name, auto value) {
      args += fmt::format(",\"{}\":{}", name, value);
    };
    if (span.layer >= 0) add("layer", span.layer);
    if (span.micro_batch >= 0) add("micro_batch", span.micro_batch);
    if (span.tokens > 0) add("tokens", span.tokens);
    // Bytes per nanosecond are 10⁹ bytes per second.
    const double ns = static_cast<double>(span.end_ns - span.begin_ns);
    if (span.bytes > 0) add("bytes", span.bytes);
    // A send span ends when the message is handed to the transport, and a wait begins when the
    // rank has nothing to do: neither's time is the network's.
    const bool message = span.kind == SpanKind::kSend || span.kind == SpanKind::kIdle;
    if (span.bytes > 0 && ns > 0 && !message) add("GB/s", static_cast<double>(span.bytes) / ns);
    if (span.flops > 0) add("flops", span.flops);
    if (span.flops > 0 && ns > 0) add("GFLOP/s", static_cast<double>(span.flops) / ns);
    return args;
  }

  std::int64_t origin_ns_;
  std::string events_;
};

// What whoever finds the file must know of the run, as further members of an object.
std::string other_data(const RunInfo& info) {
  std::string text;
  const auto add = [&](const char* name, const Json& value) {
    text +=
        fmt::format(",\"{}\":{}", name, value.dump(-1, ' ', false, Json::error_handler_t::replace));
  };
  if (!info.command.empty()) add("command", info.command);
  if (!info.model.empty()) add("model", info.model);
  if (info.shares_slabs()) {
    add("model_layers", info.model_layers);
    add("distinct_layers", info.distinct_layers);
    add("note", shared_slabs_note(info.model_layers, info.distinct_layers));
  }
  return text;
}

}  // namespace

std::string trace_json(const RunInfo& info, const std::vector<RankTimeline>& ranks) {
  // Times count from the first span of all: clocks count from boot, and viewers would show that.
  std::int64_t origin_ns = std::numeric_limits<std::int64_t>::max();
  for (const RankTimeline& rank : ranks)
    for (const Span& span : rank.spans)
      origin_ns = std::min(origin_ns, rank.to_rank0(span.begin_ns));
  TraceWriter writer(origin_ns == std::numeric_limits<std::int64_t>::max() ? 0 : origin_ns);
  for (const RankTimeline& rank : ranks) writer.add_rank(rank);
  return std::move(writer).finish(other_data(info));
}

}  // namespace stagecoach
