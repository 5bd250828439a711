// The page of `stagecoach report --html`.
#include <algorithm>
#include <set>

#include "base/byte_size.h"
#include "base/error.h"
#include "timeline/comparison.h"
#include "timeline/page/html.h"
#include "timeline/page/report_page.h"

namespace stagecoach {
namespace {

constexpr std::size_t kColors = 8;  // of report.css; more runs begin again

std::string color_of(std::size_t run) {
  return fmt::format("run{}", run % kColors);
}

std::string names(const std::vector<SavedReport>& reports) {
  std::string html = "<ul class=\"legend\">";
  for (std::size_t i = 0; i < reports.size(); ++i)
    html +=
        fmt::format("<li><i class=\"{}\"></i>{}</li>", color_of(i), html_escape(reports[i].name));
  return html + "</ul>\n";
}

std::string bar(std::size_t run, double part, double whole) {
  return fmt::format("<div class=\"stack\"><i class=\"{}\" style=\"width:{:.2f}%\"></i></div>",
                     color_of(run), whole > 0 ? std::clamp(100 * part / whole, 0.0, 100.0) : 0);
}

std::string run_table(const std::vector<SavedReport>& reports) {
  std::string html =
      "<div class=\"wide\"><table>\n<tr><th class=\"left\">run</th><th class=\"left\">what</th>"
      "<th>ranks</th><th>weights</th><th class=\"optional\">threads</th>"
      "<th class=\"optional\">isa</th><th>peak of a rank</th></tr>\n";
  for (const SavedReport& report : reports) {
    std::int64_t peak = 0;
    for (const RankSummary& rank : report.run.ranks) peak = std::max(peak, rank.usage.peak_bytes);
    const RunInfo& info = report.run.info;
    html += fmt::format(
        "<tr><td class=\"left\">{}</td><td class=\"left words\">{}: {}</td><td>{}</td><td>{}</td>"
        "<td class=\"optional\">{}</td><td class=\"optional\">{}</td><td>{}</td></tr>\n",
        html_escape(report.name), html_escape(info.model), html_escape(info.work), info.ranks,
        html_escape(info.weights), html_escape(describe_threads(report.run.ranks)),
        html_escape(describe_isas(report.run.ranks)), peak > 0 ? format_bytes(peak) : "unknown");
  }
  return html + "</table></div>\n";
}

std::string differences(const std::vector<SavedReport>& reports) {
  std::string html;
  for (const SavedReport& report : reports)
    if (const std::string note = note_of(report); !note.empty())
      html += fmt::format("<p><strong>{}</strong>: {}.</p>\n", html_escape(report.name),
                          html_escape(note));
  for (std::size_t i = 1; i < reports.size(); ++i)
    html += fmt::format("<p><strong>{}</strong> against {}: {}.</p>\n",
                        html_escape(reports[i].name), html_escape(reports[0].name),
                        html_escape(biggest_difference(reports[0], reports[i])));
  return html;
}

std::string phase_bars(const std::vector<SavedReport>& reports, Phase phase) {
  double longest = 0;
  for (const SavedReport& report : reports)
    if (const auto figures = phase_figures(report, phase)) longest = std::max(longest, figures->ms);
  std::string html =
      "<div class=\"wide\"><table>\n<tr><th class=\"left\">run</th><th class=\"left\">a pass</th>"
      "<th></th><th>tokens/s</th></tr>\n";
  for (std::size_t i = 0; i < reports.size(); ++i) {
    const auto figures = phase_figures(reports[i], phase);
    html += figures ? fmt::format(
                          "<tr><td class=\"left\">{}</td><td class=\"bar\">{}</td>"
                          "<td>{}</td><td>{:.4g}</td></tr>\n",
                          html_escape(reports[i].name), bar(i, figures->ms, longest),
                          format_ms(figures->ms), figures->tokens_per_second)
                    : fmt::format(
                          "<tr><td class=\"left\">{}</td><td class=\"bar left\">not run</td>"
                          "<td></td><td></td></tr>\n",
                          html_escape(reports[i].name));
  }
  return html + "</table></div>\n";
}

std::string layer_bars(const std::vector<SavedReport>& reports, Phase phase) {
  std::set<std::int64_t> layers;
  double longest = 0;
  for (const SavedReport& report : reports)
    for (const LayerRow& row : report.rows)
      if (row.phase == phase) {
        layers.insert(row.layer);
        longest = std::max(longest, row.ms);
      }
  std::string html =
      "<div class=\"wide\"><table>\n<tr><th>layer</th><th class=\"left\">time</th><th></th>"
      "<th>rank</th></tr>\n";
  for (const std::int64_t layer : layers) {
    std::string bars, times, ranks;
    for (std::size_t i = 0; i < reports.size(); ++i)
      for (const LayerRow& row : reports[i].rows) {
        if (row.phase != phase || row.layer != layer) continue;
        bars += bar(i, row.ms, longest);
        times += fmt::format("<div>{}</div>", format_ms(row.ms));
        ranks += fmt::format("<div>{}</div>", row.rank);
      }
    html += fmt::format(
        "<tr class=\"group\"><td>{}</td><td class=\"bar\">{}</td><td>{}</td><td>{}</td></tr>\n",
        layer, bars, times, ranks);
  }
  return html + "</table></div>\n";
}

}  // namespace

std::string comparison_page(const std::vector<SavedReport>& reports) {
  std::string body =
      fmt::format("<header>\n<h1>{} runs side by side</h1>\n</header>\n<main>\n", reports.size()) +
      run_table(reports) + "<section>\n<h2>Differences</h2>\n" + differences(reports) +
      "</section>\n";
  for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
    const bool run = std::any_of(reports.begin(), reports.end(), [&](const SavedReport& report) {
      return phase_figures(report, phase).has_value();
    });
    if (!run) continue;
    const std::string name = phase == Phase::kPrefill ? "Prefill" : "Decode";
    body += fmt::format("<section>\n<h2>{}</h2>\n{}<h3>Each layer</h3>\n{}{}</section>\n", name,
                        phase_bars(reports, phase), names(reports), layer_bars(reports, phase));
  }
  return html_page(fmt::format("{} runs – Stagecoach", reports.size()), body + "</main>\n");
}

}  // namespace stagecoach
