#include "timeline/run_summary.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/json.h"
#include "timeline/saturating.h"

namespace stagecoach {
namespace {

constexpr const char* kFormat = "stagecoach-run";
constexpr std::int64_t kVersion = 4, kOldest = 1;
constexpr std::int64_t kMaxCount = std::numeric_limits<std::int64_t>::max() / 2;

using OrderedJson = nlohmann::ordered_json;

OrderedJson phase_json(const PhaseResult& phase) {
  return {{"phase", phase_name(phase.phase)},
          {"passes", phase.passes},
          {"tokens", phase.tokens},
          {"ms", phase.ms},
          {"ms_q1", phase.ms_q1},
          {"ms_q3", phase.ms_q3},
          {"tokens_per_second", phase.tokens_per_second},
          {"embedding_ms", phase.embedding_ms},
          {"head_ms", phase.head_ms}};
}

OrderedJson rank_json(const RankSummary& rank) {
  return {{"rank", rank.rank},
          {"host", rank.host},
          {"layers", rank.usage.layers},
          {"threads", rank.usage.threads},
          {"isa", rank.usage.isa},
          {"device", rank.usage.device},
          {"inputs", rank.usage.inputs},
          {"weights_bytes", rank.usage.weights_bytes},
          {"kv_bytes", rank.usage.kv_bytes},
          {"device_weights_bytes", rank.usage.device_weights_bytes},
          {"device_kv_bytes", rank.usage.device_kv_bytes},
          {"peak_bytes", rank.usage.peak_bytes},
          {"sent_bytes", rank.sent_bytes},
          {"received_bytes", rank.received_bytes},
          {"read_bytes", rank.read_bytes}};
}

// The one list of a rank split's fields: JSON keys and the reader's come from here.
template <typename Split, typename Visitor>
void for_each_field(Split& split, Visitor&& visit) {
  constexpr std::pair<const char*, Activity> kTimes[] = {
      {"attention_ms", Activity::kAttention},    {"mlp_ms", Activity::kMlp},
      {"embedding_ms", Activity::kEmbedding},    {"head_ms", Activity::kHead},
      {"weight_wait_ms", Activity::kWeightWait}, {"send_ms", Activity::kSend},
      {"receive_ms", Activity::kWait},           {"other_ms", Activity::kOther}};
  visit("rank", split.rank);
  visit("wall_ms", split.wall_ms);
  for (const auto& [name, activity] : kTimes)
    visit(name, split.by_activity_ms[static_cast<int>(activity)]);
  visit("busy", split.busy);
  visit("waits_for", split.mostly_for);
  visit("read_bytes", split.read_bytes);
  visit("disk_ms", split.disk_ms);
  visit("share_of_disk", split.share_of_disk);
}

// More of them, where a GPU got weights over the bus.
template <typename Split, typename Visitor>
void for_each_bus_field(Split& split, Visitor&& visit) {
  visit("copied_bytes", split.copied_bytes);
  visit("bus_ms", split.bus_ms);
  visit("share_of_bus", split.share_of_bus);
}

template <typename T>
OrderedJson field_json(const std::optional<T>& value) {
  return value ? OrderedJson(*value) : OrderedJson(nullptr);
}
template <typename T>
OrderedJson field_json(const T& value) {
  return value;
}

OrderedJson rank_split_json(const RankSplit& split) {
  OrderedJson json;
  for_each_field(split,
                 [&](const char* name, const auto& value) { json[name] = field_json(value); });
  // Quotients of what stands before.
  json["disk_gb_per_s"] = split.disk_gb_per_s();
  json["disk_busy"] = split.disk_busy();
  if (split.bus_ms <= 0) return json;
  for_each_bus_field(split,
                     [&](const char* name, const auto& value) { json[name] = field_json(value); });
  json["bus_gb_per_s"] = split.bus_gb_per_s();
  json["bus_busy"] = split.bus_busy();
  return json;
}

// Elements of the array `key`, as objects that errors can name.
std::vector<JsonObject> objects(const JsonObject& parent, const char* key) {
  std::vector<JsonObject> result;
  for (const Json& item : parent.array(key))
    result.emplace_back(item, fmt::format("{}: {}[{}]", parent.where(), key, result.size()));
  return result;
}

double amount(const JsonObject& object, const char* key) {
  const double value = object.number(key);
  if (value >= 0) return value;  // JSON has no NaN
  throw data_error(
      fmt::format("{}: {}: expected a number from 0 on, found {}", object.where(), key, value));
}

std::int64_t count(const JsonObject& object, const char* key) {
  return object.integer_in(key, 0, kMaxCount);
}

// A short word of letters, digits, - _ and dots: it goes to terminals as it stands.
std::string word(const JsonObject& object, const char* key) {
  constexpr std::size_t kLongest = 24;
  const std::string text = object.string(key);
  const bool plain = std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
  if (!plain || text.empty() || text.size() > kLongest)
    throw data_error(fmt::format(
        "{}: {}: expected a word of up to {} letters, found {}", object.where(), key, kLongest,
        Json(text.substr(0, 2 * kLongest)).dump(-1, ' ', true, Json::error_handler_t::replace)));
  return text;
}

Phase parse_phase(const JsonObject& object) {
  const std::string name = object.string("phase");
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode})
    if (name == phase_name(phase)) return phase;
  throw data_error(fmt::format("{}: phase: expected prefill or decode, found {}", object.where(),
                               Json(name).dump()));
}

PhaseResult parse_phase_result(const JsonObject& object) {
  object.only({"phase", "passes", "tokens", "ms", "ms_q1", "ms_q3", "tokens_per_second",
               "embedding_ms", "head_ms"});
  return {.phase = parse_phase(object),
          .passes = count(object, "passes"),
          .tokens = count(object, "tokens"),
          .ms = amount(object, "ms"),
          .ms_q1 = amount(object, "ms_q1"),
          .ms_q3 = amount(object, "ms_q3"),
          .tokens_per_second = amount(object, "tokens_per_second"),
          .embedding_ms = amount(object, "embedding_ms"),
          .head_ms = amount(object, "head_ms")};
}

RankSummary parse_rank(const JsonObject& object, std::int64_t version) {
  std::vector<std::string_view> known{"rank",       "host",           "layers",    "threads",
                                      "isa",        "weights_bytes",  "kv_bytes",  "peak_bytes",
                                      "sent_bytes", "received_bytes", "read_bytes"};
  if (version > 2) known.push_back("inputs");
  const bool with_device = version > 3;
  if (with_device) known.insert(known.end(), {"device", "device_weights_bytes", "device_kv_bytes"});
  object.only(known);
  return {.rank = static_cast<int>(object.integer_in("rank", 0, 1 << 20)),
          .host = object.string("host"),
          .usage = {.layers = object.string("layers"),
                    .isa = object.string("isa"),
                    .device = with_device ? object.string("device") : "",
                    // Versions 1 and 2 knew no other products.
                    .inputs = version > 2 ? object.string("inputs") : "f32",
                    .threads = count(object, "threads"),
                    .weights_bytes = count(object, "weights_bytes"),
                    .kv_bytes = count(object, "kv_bytes"),
                    .device_weights_bytes = with_device ? count(object, "device_weights_bytes") : 0,
                    .device_kv_bytes = with_device ? count(object, "device_kv_bytes") : 0,
                    .peak_bytes = count(object, "peak_bytes")},
          .sent_bytes = count(object, "sent_bytes"),
          .received_bytes = count(object, "received_bytes"),
          .read_bytes = count(object, "read_bytes")};
}

struct FieldReader {
  const JsonObject& object;

  void operator()(const char* key, int& value) const {
    value = static_cast<int>(object.integer_in(key, 0, 1 << 20));
  }
  void operator()(const char* key, std::int64_t& value) const { value = count(object, key); }
  void operator()(const char* key, double& value) const { value = amount(object, key); }
  template <typename T>
  void operator()(const char* key, std::optional<T>& value) const {
    if (object.has(key)) (*this)(key, value.emplace());
  }
};

PhaseSplit parse_split(const JsonObject& object) {
  object.only({"phase", "critical_path", "ranks_detail"});
  PhaseSplit split{
      .phase = parse_phase(object), .critical_path = object.string("critical_path"), .ranks = {}};
  for (const JsonObject& rank : objects(object, "ranks_detail")) {
    RankSplit& parsed = split.ranks.emplace_back();
    std::vector<std::string_view> known{"disk_gb_per_s", "disk_busy", "bus_gb_per_s", "bus_busy"};
    const auto add = [&](const char* name, auto&) { known.push_back(name); };
    for_each_field(parsed, add);
    for_each_bus_field(parsed, add);
    rank.only(known);
    for_each_field(parsed, FieldReader{rank});
    for (const char* quotient : {"disk_gb_per_s", "disk_busy"}) amount(rank, quotient);
    if (rank.has("bus_ms")) {
      for_each_bus_field(parsed, FieldReader{rank});
      for (const char* quotient : {"bus_gb_per_s", "bus_busy"}) amount(rank, quotient);
    }
    parsed.phase = split.phase;
  }
  return split;
}

RunInfo parse_info(const JsonObject& object, std::int64_t version) {
  RunInfo info{.command = word(object, "command"),
               .work = object.string("work"),
               .model = object.string("model"),
               .model_version = object.string("model_version"),
               .weights = word(object, "weights"),
               .build = object.string("build"),
               .wire = object.string("wire"),
               // Versions 1 and 2 knew no other keys and values.
               .kv = version > 2 ? object.string("kv") : "f32",
               .layer_begin = count(object, "layer_begin"),
               .layer_end = count(object, "layer_end"),
               .model_layers = count(object, "model_layers"),
               .distinct_layers = count(object, "distinct_layers"),
               .micro_batch = count(object, "micro_batch"),
               .ranks = 0,
               .tokens_per_second = std::nullopt,
               .phases = {}};
  if (object.has("tokens_per_second")) info.tokens_per_second = amount(object, "tokens_per_second");
  for (const JsonObject& phase : objects(object, "phases"))
    info.phases.push_back(parse_phase_result(phase));
  return info;
}

}  // namespace

RunSummary run_summary(const RunInfo& info, const std::vector<RankTimeline>& ranks) {
  RunSummary summary{.info = info, .ranks = {}, .splits = phase_splits(ranks)};
  summary.info.ranks = static_cast<int>(ranks.size());
  for (const RankTimeline& rank : ranks) {
    RankSummary& entry = summary.ranks.emplace_back();
    entry.rank = rank.rank;
    entry.host = rank.host;
    entry.usage = rank.usage;
    // A single rank's messages to itself go nowhere.
    const bool alone = ranks.size() == 1;
    for (const Span& span : rank.spans) {
      if (span.kind == SpanKind::kRead) add_saturated(entry.read_bytes, span.bytes);
      if (alone) continue;
      if (span.kind == SpanKind::kSend) add_saturated(entry.sent_bytes, span.bytes);
      if (span.kind == SpanKind::kIdle) add_saturated(entry.received_bytes, span.bytes);
    }
  }
  return summary;
}

std::vector<PhaseSplit> phase_splits(const std::vector<RankTimeline>& ranks) {
  std::vector<PhaseSplit> splits;
  for (const RankSplit& split : rank_splits(ranks)) {
    if (splits.empty() || splits.back().phase != split.phase)
      splits.push_back({.phase = split.phase, .critical_path = {}, .ranks = {}});
    splits.back().ranks.push_back(split);
  }
  for (const CriticalPath& path : critical_paths(ranks))
    for (PhaseSplit& split : splits)
      if (split.phase == path.phase) split.critical_path = describe(path);
  return splits;
}

OrderedJson split_json(const PhaseSplit& split) {
  OrderedJson ranks = OrderedJson::array();
  for (const RankSplit& rank : split.ranks) ranks.push_back(rank_split_json(rank));
  return {{"critical_path", split.critical_path}, {"ranks_detail", ranks}};
}

std::string run_json(const RunSummary& summary) {
  const RunInfo& info = summary.info;
  OrderedJson phases = OrderedJson::array(), ranks = OrderedJson::array();
  OrderedJson splits = OrderedJson::array();
  for (const PhaseSplit& split : summary.splits) {
    splits.push_back({{"phase", phase_name(split.phase)}});
    splits.back().update(split_json(split));
  }
  for (const PhaseResult& phase : info.phases) phases.push_back(phase_json(phase));
  for (const RankSummary& rank : summary.ranks) ranks.push_back(rank_json(rank));
  const OrderedJson json{
      {"format", kFormat},
      {"version", kVersion},
      {"command", info.command},
      {"work", info.work},
      {"model", info.model},
      {"model_version", info.model_version},
      {"weights", info.weights},
      {"build", info.build},
      {"wire", info.wire},
      {"kv", info.kv},
      {"layer_begin", info.layer_begin},
      {"layer_end", info.layer_end},
      {"model_layers", info.model_layers},
      {"distinct_layers", info.distinct_layers},
      {"micro_batch", info.micro_batch},
      {"tokens_per_second",
       info.tokens_per_second ? OrderedJson(*info.tokens_per_second) : OrderedJson(nullptr)},
      {"phases", phases},
      {"ranks", ranks},
      {"splits", splits}};
  return json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

RunSummary parse_run_json(std::string_view text, const std::string& source) {
  const Json json = parse_json(text, source);
  const JsonObject object(json, source);
  if (const std::string format = object.string("format"); format != kFormat)
    throw data_error(fmt::format("{}: expected format \"{}\", found {}", source, kFormat,
                                 Json(format).dump(-1, ' ', true)));
  const std::int64_t version = object.integer("version");
  if (version < kOldest || version > kVersion)
    throw data_error(
        fmt::format("{}: expected version {} to {}, found {}", source, kOldest, kVersion, version),
        "use the Stagecoach that wrote it, or run again with --report");
  std::vector<std::string_view> known{
      "format",        "version",      "command",         "work",        "model",
      "model_version", "weights",      "build",           "wire",        "layer_begin",
      "layer_end",     "model_layers", "distinct_layers", "micro_batch", "tokens_per_second",
      "phases",        "ranks"};
  if (version > 1) known.push_back("splits");
  if (version > 2) known.push_back("kv");
  object.only(known);
  RunSummary summary{.info = parse_info(object, version), .ranks = {}, .splits = {}};
  for (const JsonObject& rank : objects(object, "ranks"))
    summary.ranks.push_back(parse_rank(rank, version));
  if (summary.ranks.empty())
    throw data_error(fmt::format("{}: ranks: expected one at least, found none", source));
  summary.info.ranks = static_cast<int>(summary.ranks.size());
  if (version == 1) return summary;
  for (const JsonObject& split : objects(object, "splits"))
    summary.splits.push_back(parse_split(split));
  return summary;
}

}  // namespace stagecoach
