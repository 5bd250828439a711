#include "timeline/page/report_page.h"

#include <algorithm>
#include <functional>
#include <set>

#include "base/byte_size.h"
#include "base/error.h"
#include "timeline/critical_path.h"
#include "timeline/page/gantt.h"
#include "timeline/page/html.h"
#include "timeline/rank_split.h"

namespace stagecoach {
namespace {

constexpr const char* kNotProbed = "not probed";

std::string capitalized(std::string_view text) {
  std::string result(text);
  if (!result.empty() && result[0] >= 'a' && result[0] <= 'z')
    result[0] = static_cast<char>(result[0] - 'a' + 'A');
  return result;
}

double percent(double part, double whole) {
  return whole > 0 ? 100 * part / whole : 0;
}

std::string join_distinct(const std::vector<RankSummary>& ranks,
                          const std::function<std::string(const RankSummary&)>& text_of) {
  std::vector<std::string> texts;
  for (const RankSummary& rank : ranks) {
    const std::string text = text_of(rank);
    if (std::find(texts.begin(), texts.end(), text) == texts.end()) texts.push_back(text);
  }
  std::string joined;
  for (const std::string& text : texts) joined += (joined.empty() ? "" : ", ") + text;
  return joined;
}

// Figures keep to their units at the end of a line.
std::string unbroken(std::string text) {
  for (std::size_t at = text.find(" %"); at != std::string::npos; at = text.find(" %", at))
    text.replace(at, 1, "&nbsp;");
  return text;
}

// A coloured part of a horizontal bar, `part` of `whole` wide.
std::string segment(const char* style_class, double part, double whole) {
  const double width = percent(part, whole);
  if (width < 0.05) return {};
  return fmt::format("<i class=\"{}\" style=\"width:{:.2f}%\"></i>", style_class,
                     std::min(width, 100.0));
}

std::string legend(const std::vector<std::pair<const char*, const char*>>& entries) {
  std::string html = "<ul class=\"legend\">";
  for (const auto& [style_class, label] : entries)
    html += fmt::format("<li><i class=\"{}\"></i>{}</li>", style_class, label);
  return html + "</ul>\n";
}

std::string heading(const RunSummary& summary) {
  const RunInfo& info = summary.info;
  std::string layers =
      fmt::format("layers {}:{} of {}", info.layer_begin, info.layer_end, info.model_layers);
  if (info.layer_begin == 0 && info.layer_end == info.model_layers)
    layers = fmt::format("{} layers", info.model_layers);
  return fmt::format(
      "<header>\n<h1>{}</h1>\n<p>{} · {}, {} weights · stagecoach {}</p>\n</header>\n",
      html_escape(info.model.empty() ? "unnamed model" : info.model), html_escape(info.work),
      layers, html_escape(info.weights), html_escape(info.command));
}

std::string facts(const RunSummary& summary) {
  std::string html = "<ul class=\"facts\">\n";
  const RunInfo& info = summary.info;
  if (info.tokens_per_second)
    html += fact(fmt::format("{:.4g}", *info.tokens_per_second), "tokens/s, whole run");
  for (const PhaseResult& phase : info.phases) {
    const std::string name(phase_name(phase.phase));
    html += fact(fmt::format("{:.4g}", phase.tokens_per_second), name + " tokens/s");
    html += fact(format_ms(phase.ms),
                 fmt::format("{} pass, median of {} ({} to {})", name, phase.passes,
                             format_ms(phase.ms_q1), format_ms(phase.ms_q3)));
  }
  html += fact(fmt::format("{}", info.ranks), info.ranks == 1 ? "rank" : "ranks");
  html += fact(describe_threads(summary.ranks), "threads a rank");
  html += fact(describe_isas(summary.ranks), "instruction set");
  html += fact(describe_hosts(summary.ranks), "hosts");
  return html + "</ul>\n";
}

std::string notes(const RunSummary& summary, const std::vector<RankTimeline>& ranks) {
  std::string html;
  const RunInfo& info = summary.info;
  if (info.shares_slabs())
    html += fmt::format(
        "<p>{}.</p>\n",
        html_escape(capitalized(shared_slabs_note(info.model_layers, info.distinct_layers))));
  for (const RankTimeline& rank : ranks)
    if (rank.spans.size() >= Timeline::kMaxSpans)
      html +=
          fmt::format("<p>The timeline of rank {} is full: figures cover its first {} spans.</p>\n",
                      rank.rank, Timeline::kMaxSpans);
  return html;
}

// Thin, as disks are in the charts: reads, and copies to a GPU; nothing where there were none.
std::string beside_bars(const RankSplit& split) {
  std::string bars;
  if (split.disk_ms > 0)
    bars += "<div class=\"stack disk\">" + segment("read", split.disk_ms, split.wall_ms) + "</div>";
  if (split.bus_ms > 0)
    bars += "<div class=\"stack disk\">" + segment("copy", split.bus_ms, split.wall_ms) + "</div>";
  return bars;
}

// One line for each rank: what its main thread did, for whom it waited, and its disk.
std::string rank_time_table(const std::vector<RankSplit>& splits) {
  std::string html =
      "<div class=\"wide\"><table class=\"ranks\">\n<tr><th class=\"left\">rank</th>"
      "<th class=\"left\">main thread, and disk below</th><th class=\"optional\">computes or "
      "reads</th><th>waits for a rank</th><th class=\"left optional\">mostly</th><th>waits for "
      "weights</th><th>disk busy</th><th class=\"optional\">read</th><th>GB/s</th>"
      "<th class=\"optional\">of limit</th></tr>\n";
  for (const RankSplit& split : splits) {
    const auto part = [&](Activity a) { return percent(split.ms(a), split.wall_ms); };
    std::string bar;
    for (int a = 0; a < kActivities; ++a) {
      const auto activity = static_cast<Activity>(a);
      bar += segment(activity_key(activity), split.ms(activity), split.wall_ms);
    }
    const bool reads = split.disk_ms > 0;
    const std::string limit = !reads ? "–"
                              : split.share_of_disk
                                  ? fmt::format("{:.0f} %", *split.share_of_disk * 100)
                                  : kNotProbed;
    const bool waits = split.mostly_for && part(Activity::kWait) >= 1;
    html += fmt::format(
        "<tr><td class=\"left\">{}</td><td class=\"bar\"><div class=\"stack\">{}</div>{}</td>"
        "<td class=\"optional\">{:.0f} %</td><td>{:.0f} %</td><td class=\"left optional\">{}</td>"
        "<td>{:.0f} %</td><td>{:.0f} %</td><td class=\"optional\">{}</td><td>{}</td>"
        "<td class=\"optional\">{}</td></tr>\n",
        split.rank, bar, beside_bars(split), 100 * split.busy, part(Activity::kWait),
        waits ? fmt::format("rank {}", *split.mostly_for) : "–", part(Activity::kWeightWait),
        100 * split.disk_busy(), reads ? format_bytes(split.read_bytes) : "–",
        reads ? fmt::format("{:.2f}", split.disk_gb_per_s()) : "–", limit);
  }
  return html + "</table></div>\n";
}

std::string split_section(const std::vector<PhaseSplit>& splits) {
  if (splits.empty()) return {};
  std::string html =
      "<section>\n<h2>What the time went into</h2>\n<p class=\"muted\">The critical path: from the "
      "last result back through whatever it had to wait for. Only what stands here makes the run "
      "shorter when it gets faster. A disk stands here for as long as the path waited for what it "
      "read, also where it read ahead.</p>\n";
  for (const PhaseSplit& split : splits)
    html += fmt::format("<p><strong>{}</strong>: {}.</p>\n", capitalized(phase_name(split.phase)),
                        unbroken(html_escape(split.critical_path)));
  html += "<h3>Each rank</h3>\n" + legend({{"attention", "attention"},
                                           {"mlp", "MLP"},
                                           {"embedding", "embedding"},
                                           {"head", "head and sampling"},
                                           {"weight-wait", "waiting for weights"},
                                           {"send", "send"},
                                           {"wait", "waiting for a rank"},
                                           {"other", "between spans"},
                                           {"read", "disk reads"}});
  for (const PhaseSplit& split : splits)
    html += fmt::format("<h4>{}, {} a pass</h4>\n", capitalized(phase_name(split.phase)),
                        format_ms(split.ranks.front().wall_ms)) +
            rank_time_table(split.ranks);
  return html + "</section>\n";
}

std::string gantt_section(const std::vector<RankTimeline>& ranks) {
  std::string html = "<section>\n<h2>Ranks over time</h2>\n";
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    const PassRange pass = median_pass(ranks, phase);
    if (pass.passes == 0) continue;
    html += fmt::format("<h3>One {} pass: number {}, the median of {}</h3>\n", phase_name(phase),
                        pass.pass, pass.passes) +
            gantt_figure(ranks, pass.range);
  }
  html += "<h3>The whole run, loading included</h3>\n" + gantt_figure(ranks, whole_run(ranks));
  return html + "</section>\n";
}

std::string layer_line(const LayerRow& row, double longest_ms) {
  const std::string share =
      row.share_of_limit ? fmt::format("{:.0f} %", *row.share_of_limit * 100) : kNotProbed;
  const double rest = std::max(0.0, row.ms - row.attention_ms - row.mlp_ms - row.wait_ms);
  return fmt::format(
      "<tr><td>{}</td><td>{}</td><td class=\"bar\"><div class=\"stack\">{}{}{}{}</div></td>"
      "<td>{}</td><td class=\"optional\">{:.3g}</td><td class=\"optional\">{:.3g}</td>"
      "<td>{}</td></tr>\n",
      row.layer, row.rank, segment("attention", row.attention_ms, longest_ms),
      segment("mlp", row.mlp_ms, longest_ms), segment("weight-wait", row.wait_ms, longest_ms),
      segment("other", rest, longest_ms), format_ms(row.ms), row.gb_per_s(), row.gflop_per_s(),
      share);
}

std::string layer_section(const std::vector<LayerRow>& rows) {
  std::string html =
      "<section>\n<h2>Each layer</h2>\n" + legend({{"attention", "attention"},
                                                   {"mlp", "MLP"},
                                                   {"weight-wait", "waiting for weights"},
                                                   {"other", "between spans"}});
  const bool probed = std::any_of(
      rows.begin(), rows.end(), [](const LayerRow& row) { return row.share_of_limit.has_value(); });
  if (!probed)
    html +=
        "<p class=\"muted\">Share of limit: this machine's memory and arithmetic limits have not "
        "been probed, so that no share can be given; <code>stagecoach probe</code> does it once "
        "for "
        "each host.</p>\n";
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    double longest_ms = 0;
    std::int64_t passes = 0;
    for (const LayerRow& row : rows)
      if (row.phase == phase) {
        longest_ms = std::max(longest_ms, row.ms);
        passes = std::max(passes, row.passes);
      }
    if (passes == 0) continue;
    html += fmt::format(
        "<h3>{}, medians of {} passes</h3>\n<div class=\"wide\"><table>\n<tr><th>layer</th>"
        "<th>rank</th><th class=\"left\">time</th><th></th><th class=\"optional\">GB/s</th>"
        "<th class=\"optional\">GFLOP/s</th><th>of limit</th></tr>\n",
        capitalized(phase_name(phase)), passes);
    for (const LayerRow& row : rows)
      if (row.phase == phase) html += layer_line(row, longest_ms);
    html += "</table></div>\n";
  }
  return html + "</section>\n";
}

// The parts of a process's memory; what is not known by name is the rest of its peak.
std::string memory_bar(const RankUsage& usage, double largest) {
  const auto rest = static_cast<double>(
      std::max<std::int64_t>(0, usage.peak_bytes - usage.weights_bytes - usage.kv_bytes));
  return segment("mlp", static_cast<double>(usage.weights_bytes), largest) +
         segment("attention", static_cast<double>(usage.kv_bytes), largest) +
         segment("other", rest, largest);
}

std::string memory_section(const std::vector<RankSummary>& ranks) {
  const bool devices = std::any_of(ranks.begin(), ranks.end(), [](const RankSummary& rank) {
    return !rank.usage.device.empty();
  });
  std::string html =
      "<section>\n<h2>Memory and bytes of each rank</h2>\n" +
      legend({{"mlp", "weights"}, {"attention", "keys and values"}, {"other", "everything else"}}) +
      "<div class=\"wide\"><table>\n<tr><th>rank</th><th class=\"left\">layers</th><th "
      "class=\"left optional\">host</th><th class=\"left\">peak memory</th><th></th>"
      "<th>weights</th><th>KV</th>" +
      (devices ? "<th>weights on GPU</th><th>KV on GPU</th>" : "") +
      "<th>sent</th><th>received</th><th>read</th></tr>\n";
  double largest = 0;
  for (const RankSummary& rank : ranks)
    largest = std::max({largest, static_cast<double>(rank.usage.peak_bytes),
                        static_cast<double>(rank.usage.weights_bytes)});
  for (const RankSummary& rank : ranks) {
    const RankUsage& usage = rank.usage;
    html += fmt::format(
        "<tr><td>{}</td><td class=\"left\">{}</td><td class=\"left optional\">{}</td>"
        "<td class=\"left\" style=\"width:30%;min-width:6rem\"><div class=\"stack\">{}</div></td>"
        "<td>{}</td><td>{}</td><td>{}</td>{}<td>{}</td><td>{}</td><td>{}</td></tr>\n",
        rank.rank, html_escape(usage.layers), html_escape(rank.host), memory_bar(usage, largest),
        usage.peak_bytes > 0 ? format_bytes(usage.peak_bytes) : "unknown",
        format_bytes(usage.weights_bytes), format_bytes(usage.kv_bytes),
        devices ? fmt::format("<td>{}</td><td>{}</td>", format_bytes(usage.device_weights_bytes),
                              format_bytes(usage.device_kv_bytes))
                : "",
        format_bytes(rank.sent_bytes), format_bytes(rank.received_bytes),
        format_bytes(rank.read_bytes));
  }
  return html +
         "</table></div>\n<p class=\"muted\">Peak: the largest resident set of the process. Sent "
         "and received: hidden states and results between ranks, warm-up included. Read: from "
         "disk, loading included.</p>\n</section>\n";
}

}  // namespace

std::string fact(const std::string& figure, const std::string& what) {
  return fmt::format("<li><b>{}</b><span>{}</span></li>\n", html_escape(figure), html_escape(what));
}

std::string describe_hosts(const std::vector<RankSummary>& ranks) {
  const std::string hosts = join_distinct(ranks, [](const RankSummary& r) { return r.host; });
  constexpr std::size_t kLongest = 60;
  if (hosts.size() <= kLongest) return hosts;
  std::set<std::string> names;
  for (const RankSummary& rank : ranks) names.insert(rank.host);
  return fmt::format("{} hosts", names.size());
}

std::string describe_threads(const std::vector<RankSummary>& ranks) {
  return join_distinct(ranks, [](const RankSummary& r) { return std::to_string(r.usage.threads); });
}

std::string describe_isas(const std::vector<RankSummary>& ranks) {
  return join_distinct(ranks, [](const RankSummary& r) { return r.usage.isa; });
}

std::string report_page(const RunSummary& summary, const std::vector<LayerRow>& rows,
                        const std::vector<RankTimeline>& ranks) {
  const RunInfo& info = summary.info;
  const std::string body =
      heading(summary) + "<main>\n" + facts(summary) + notes(summary, ranks) +
      split_section(summary.splits) + gantt_section(ranks) + layer_section(rows) +
      memory_section(summary.ranks) +
      fmt::format(
          "</main>\n<footer><p class=\"muted\">Stagecoach {}; hidden states between ranks "
          "as {}, keys and values as {}; micro-batches of up to {} tokens. Times of all ranks are "
          "on rank 0's "
          "clock.</p></footer>\n",
          html_escape(info.build), html_escape(info.wire), html_escape(info.kv), info.micro_batch);
  return html_page(fmt::format("{} on {} {} – Stagecoach", info.model, info.ranks,
                               info.ranks == 1 ? "rank" : "ranks"),
                   body);
}

}  // namespace stagecoach
