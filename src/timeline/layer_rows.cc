// From spans to one row per (layer, rank, phase).
#include <algorithm>
#include <limits>
#include <map>
#include <tuple>
#include <utility>

#include "timeline/median.h"
#include "timeline/report.h"
#include "timeline/saturating.h"

namespace stagecoach {
namespace {

struct Interval {
  std::int64_t begin_ns = std::numeric_limits<std::int64_t>::max();
  std::int64_t end_ns = 0;
};

// One pass of one phase through one layer on one rank.
struct PassTotals {
  std::map<std::int64_t, Interval> micro_batches;  // number → from its first span to its last
  std::vector<Interval> reads, copies;
  std::int64_t attention_ns = 0, mlp_ns = 0, wait_ns = 0;
  std::int64_t attention_tokens = 0, mlp_tokens = 0;
  std::int64_t bytes = 0, flops = 0;
  bool computed = false;
};
using Passes = std::map<std::int64_t, PassTotals>;
using LayerPhases = std::map<std::pair<std::int32_t, Phase>, Passes>;

bool is_read(SpanKind kind) {
  return kind == SpanKind::kRead || kind == SpanKind::kVerify;
}
bool is_compute(SpanKind kind) {
  return kind == SpanKind::kAttention || kind == SpanKind::kMlp;
}
bool is_layer_work(SpanKind kind) {
  return is_compute(kind) || kind == SpanKind::kWeightWait;
}

void add_layer_work(PassTotals& pass, const Span& span) {
  Interval& extent = pass.micro_batches[span.micro_batch];
  extent.begin_ns = std::min(extent.begin_ns, span.begin_ns);
  extent.end_ns = std::max(extent.end_ns, span.end_ns);
  const std::int64_t ns = span.end_ns - span.begin_ns;
  if (span.kind == SpanKind::kWeightWait) return add_saturated(pass.wait_ns, ns);
  const bool attention = span.kind == SpanKind::kAttention;
  add_saturated(attention ? pass.attention_ns : pass.mlp_ns, ns);
  add_saturated(attention ? pass.attention_tokens : pass.mlp_tokens, span.tokens);
  add_saturated(pass.bytes, span.bytes);
  add_saturated(pass.flops, span.flops);
  pass.computed = true;
}

// Whoever reads or copies ahead does not know for which pass: such a span (phase none) belongs to
// the first pass whose computation began after it had ended.
class ReadOwners {
 public:
  explicit ReadOwners(const std::vector<Span>& spans) {
    for (const Span& span : spans)
      if (is_compute(span.kind))
        uses_.emplace_back(span.layer, span.begin_ns, span.phase, span.pass);
    std::sort(uses_.begin(), uses_.end());
  }

  // The phase and pass of `read`; phase none when nothing used it.
  std::pair<Phase, std::int64_t> find(const Span& read) const {
    if (read.phase != Phase::kNone) return {read.phase, read.pass};
    const Use earliest{read.layer, read.end_ns, Phase::kNone,
                       std::numeric_limits<std::int64_t>::min()};
    const auto use = std::lower_bound(uses_.begin(), uses_.end(), earliest);
    if (use == uses_.end() || std::get<0>(*use) != read.layer) return {Phase::kNone, 0};
    return {std::get<2>(*use), std::get<3>(*use)};
  }

 private:
  using Use =
      std::tuple<std::int32_t, std::int64_t, Phase, std::int64_t>;  // layer, begin, phase, pass
  std::vector<Use> uses_;
};

LayerPhases collect(const std::vector<Span>& spans) {
  LayerPhases phases;
  const ReadOwners owners(spans);
  for (const Span& span : spans) {
    if (span.layer < 0) continue;
    if (is_layer_work(span.kind) && span.phase != Phase::kNone)
      add_layer_work(phases[{span.layer, span.phase}][span.pass], span);
    const bool copy = span.kind == SpanKind::kCopy;
    if (copy || is_read(span.kind)) {
      const auto [phase, pass] = owners.find(span);
      if (phase == Phase::kNone) continue;
      PassTotals& totals = phases[{span.layer, phase}][pass];
      (copy ? totals.copies : totals.reads).push_back({span.begin_ns, span.end_ns});
    }
  }
  return phases;
}

// Time covered by at least one of `intervals`: parallel reads of one layer count once.
std::int64_t covered_ns(std::vector<Interval> intervals) {
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.begin_ns < b.begin_ns; });
  std::int64_t covered = 0, reached = 0;
  for (const Interval& i : intervals) {
    add_saturated(covered, std::max<std::int64_t>(0, i.end_ns - std::max(i.begin_ns, reached)));
    reached = std::max(reached, i.end_ns);
  }
  return covered;
}

std::int64_t wall_ns(const PassTotals& pass) {
  std::int64_t sum = 0;
  for (const auto& [number, extent] : pass.micro_batches)
    add_saturated(sum, extent.end_ns - extent.begin_ns);
  return sum;
}

double to_ms(std::int64_t ns) {
  return static_cast<double>(ns) * 1e-6;
}

LayerRow summarize(const std::vector<const PassTotals*>& passes) {
  const auto median_of = [&](auto&& measure) {
    std::vector<std::int64_t> values;
    values.reserve(passes.size());
    for (const PassTotals* pass : passes) values.push_back(measure(*pass));
    return median(std::move(values));
  };
  LayerRow row;
  std::vector<double> walls;
  walls.reserve(passes.size());
  for (const PassTotals* pass : passes) walls.push_back(to_ms(wall_ns(*pass)));
  const Quartiles wall = quartiles(std::move(walls));
  row.ms_q1 = wall.q1;
  row.ms_q3 = wall.q3;
  row.ms = to_ms(median_of(wall_ns));
  row.read_ms = to_ms(median_of([](const PassTotals& p) { return covered_ns(p.reads); }));
  row.copy_ms = to_ms(median_of([](const PassTotals& p) { return covered_ns(p.copies); }));
  row.wait_ms = to_ms(median_of([](const PassTotals& p) { return p.wait_ns; }));
  row.compute_ms = to_ms(median_of([](const PassTotals& p) {
    std::int64_t sum = p.attention_ns;
    add_saturated(sum, p.mlp_ns);
    return sum;
  }));
  row.attention_ms = to_ms(median_of([](const PassTotals& p) { return p.attention_ns; }));
  row.mlp_ms = to_ms(median_of([](const PassTotals& p) { return p.mlp_ns; }));
  row.bytes = median_of([](const PassTotals& p) { return p.bytes; });
  row.flops = median_of([](const PassTotals& p) { return p.flops; });
  // Both halves of a layer see the same tokens.
  row.tokens =
      median_of([](const PassTotals& p) { return std::max(p.attention_tokens, p.mlp_tokens); });
  row.passes = static_cast<std::int64_t>(passes.size());
  return row;
}

double giga_per_s(std::int64_t amount, double ms) {
  return ms > 0 ? static_cast<double>(amount) / ms * 1e-6 : 0;
}

// Of the nearer of the rank's two limits. More than 1 is reported as it is: caches hold weights,
// and a probe may have been disturbed.
std::optional<double> share_of_limit(const LayerRow& row, const RankUsage& usage) {
  if (usage.memory_bytes_per_s <= 0 || usage.flops_per_s <= 0 || row.compute_ms <= 0)
    return std::nullopt;
  return std::max(row.gb_per_s() * 1e9 / usage.memory_bytes_per_s,
                  row.gflop_per_s() * 1e9 / usage.flops_per_s);
}

}  // namespace

double LayerRow::gb_per_s() const {
  return giga_per_s(bytes, compute_ms);
}
double LayerRow::gflop_per_s() const {
  return giga_per_s(flops, compute_ms);
}

std::vector<LayerRow> layer_rows(const std::vector<RankTimeline>& ranks) {
  const bool with_device = std::any_of(ranks.begin(), ranks.end(), [](const RankTimeline& rank) {
    return !rank.usage.device.empty();
  });
  std::vector<LayerRow> rows;
  for (const RankTimeline& rank : ranks) {
    const LayerPhases phases = collect(rank.spans);
    for (const auto& [key, passes] : phases) {
      std::vector<const PassTotals*> measured;
      for (const auto& [number, pass] : passes)
        if (number >= 0 && pass.computed) measured.push_back(&pass);
      if (measured.empty()) continue;
      LayerRow& row = rows.emplace_back(summarize(measured));
      row.layer = key.first;
      row.phase = key.second;
      row.rank = rank.rank;
      row.host = rank.host;
      const std::vector<std::int64_t>& on_cpu = rank.usage.cpu_layers;
      const bool by_cpu = std::find(on_cpu.begin(), on_cpu.end(), row.layer) != on_cpu.end();
      if (with_device) row.device = by_cpu || rank.usage.device.empty() ? "cpu" : "cuda";
      // The limits are those of the device that computes the other layers.
      if (!by_cpu) row.share_of_limit = share_of_limit(row, rank.usage);
    }
  }
  std::sort(rows.begin(), rows.end(), [](const LayerRow& a, const LayerRow& b) {
    return std::tie(a.layer, a.rank, a.phase) < std::tie(b.layer, b.rank, b.phase);
  });
  return rows;
}

bool has_gpu(const std::vector<LayerRow>& rows) {
  return std::ranges::any_of(rows, [](const LayerRow& row) { return !row.device.empty(); });
}

double median_pass_ms(const std::vector<RankTimeline>& ranks, SpanKind kind, Phase phase) {
  std::map<std::int64_t, std::int64_t> passes;
  for (const RankTimeline& rank : ranks)
    for (const Span& span : rank.spans)
      if (span.kind == kind && span.phase == phase && span.pass >= 0)
        add_saturated(passes[span.pass], span.end_ns - span.begin_ns);
  std::vector<std::int64_t> sums;
  sums.reserve(passes.size());
  for (const auto& [number, sum] : passes) sums.push_back(sum);
  return to_ms(median(std::move(sums)));
}

}  // namespace stagecoach
