#include "timeline/run_summary.h"

#include <algorithm>
#include <limits>

#include "base/error.h"
#include "base/json.h"
#include "timeline/saturating.h"

namespace stagecoach {
namespace {

constexpr const char* kFormat = "stagecoach-run";
constexpr std::int64_t kVersion = 1;
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
          {"weights_bytes", rank.usage.weights_bytes},
          {"kv_bytes", rank.usage.kv_bytes},
          {"peak_bytes", rank.usage.peak_bytes},
          {"sent_bytes", rank.sent_bytes},
          {"received_bytes", rank.received_bytes},
          {"read_bytes", rank.read_bytes}};
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

RankSummary parse_rank(const JsonObject& object) {
  object.only({"rank", "host", "layers", "threads", "isa", "weights_bytes", "kv_bytes",
               "peak_bytes", "sent_bytes", "received_bytes", "read_bytes"});
  return {.rank = static_cast<int>(object.integer_in("rank", 0, 1 << 20)),
          .host = object.string("host"),
          .usage = {.layers = object.string("layers"),
                    .isa = object.string("isa"),
                    .threads = count(object, "threads"),
                    .weights_bytes = count(object, "weights_bytes"),
                    .kv_bytes = count(object, "kv_bytes"),
                    .peak_bytes = count(object, "peak_bytes")},
          .sent_bytes = count(object, "sent_bytes"),
          .received_bytes = count(object, "received_bytes"),
          .read_bytes = count(object, "read_bytes")};
}

RunInfo parse_info(const JsonObject& object) {
  RunInfo info{.command = word(object, "command"),
               .work = object.string("work"),
               .model = object.string("model"),
               .model_version = object.string("model_version"),
               .weights = word(object, "weights"),
               .build = object.string("build"),
               .wire = object.string("wire"),
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
  RunSummary summary{.info = info, .ranks = {}};
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

std::string run_json(const RunSummary& summary) {
  const RunInfo& info = summary.info;
  OrderedJson phases = OrderedJson::array(), ranks = OrderedJson::array();
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
      {"layer_begin", info.layer_begin},
      {"layer_end", info.layer_end},
      {"model_layers", info.model_layers},
      {"distinct_layers", info.distinct_layers},
      {"micro_batch", info.micro_batch},
      {"tokens_per_second",
       info.tokens_per_second ? OrderedJson(*info.tokens_per_second) : OrderedJson(nullptr)},
      {"phases", phases},
      {"ranks", ranks}};
  return json.dump(1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

RunSummary parse_run_json(std::string_view text, const std::string& source) {
  const Json json = parse_json(text, source);
  const JsonObject object(json, source);
  if (const std::string format = object.string("format"); format != kFormat)
    throw data_error(fmt::format("{}: expected format \"{}\", found {}", source, kFormat,
                                 Json(format).dump(-1, ' ', true)));
  if (const std::int64_t version = object.integer("version"); version != kVersion)
    throw data_error(fmt::format("{}: expected version {}, found {}", source, kVersion, version),
                     "use the Stagecoach that wrote it, or run again with --report");
  object.only({"format", "version", "command", "work", "model", "model_version", "weights", "build",
               "wire", "layer_begin", "layer_end", "model_layers", "distinct_layers", "micro_batch",
               "tokens_per_second", "phases", "ranks"});
  RunSummary summary{.info = parse_info(object), .ranks = {}};
  for (const JsonObject& rank : objects(object, "ranks")) summary.ranks.push_back(parse_rank(rank));
  if (summary.ranks.empty())
    throw data_error(fmt::format("{}: ranks: expected one at least, found none", source));
  summary.info.ranks = static_cast<int>(summary.ranks.size());
  return summary;
}

}  // namespace stagecoach
