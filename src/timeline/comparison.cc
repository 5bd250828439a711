#include "timeline/comparison.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "timeline/median.h"
#include "timeline/page/html.h"
#include "timeline/page/report_page.h"

namespace stagecoach {
namespace {

constexpr Phase kPhases[] = {Phase::kPrefill, Phase::kDecode};

// Below this factor two medians of a PC are the same.
constexpr double kNoise = 1.02;

std::map<std::int64_t, double> layer_times(const SavedReport& report, Phase phase) {
  std::map<std::int64_t, double> times;
  // With rounds a layer has one row; were it to run on two ranks, both count.
  for (const LayerRow& row : report.rows)
    if (row.phase == phase) times[row.layer] += row.ms;
  return times;
}

struct LayerChange {
  std::int64_t layer = 0;
  double from_ms = 0, to_ms = 0;
};

std::optional<LayerChange> largest_change(const SavedReport& base, const SavedReport& other,
                                          Phase phase) {
  std::optional<LayerChange> largest;
  const std::map<std::int64_t, double> to = layer_times(other, phase);
  for (const auto& [layer, from_ms] : layer_times(base, phase)) {
    const auto found = to.find(layer);
    if (found == to.end()) continue;
    const double change = std::abs(found->second - from_ms);
    if (!largest || change > std::abs(largest->to_ms - largest->from_ms))
      largest = {layer, from_ms, found->second};
  }
  return largest;
}

// One phase in two runs.
struct PhaseChange {
  Phase phase;
  PhaseFigures from, to;

  bool same_work() const { return from.tokens == to.tokens; }
  // More than 1: the second run is faster.
  double speed() const {
    const double faster = same_work() ? from.ms : to.tokens_per_second;
    const double slower = same_work() ? to.ms : from.tokens_per_second;
    return faster > 0 && slower > 0 ? faster / slower : 1;
  }
};

// From 1 on, whichever way it goes.
double distance(double speed) {
  return std::max(speed, 1 / speed);
}

// Null where an older version wrote the report.
nlohmann::ordered_json critical_path_of(const SavedReport& report, Phase phase) {
  for (const PhaseSplit& split : report.run.splits)
    if (split.phase == phase) return split.critical_path;
  return nullptr;
}

std::string number(const std::optional<double>& value) {
  return value ? fmt::format("{:.4g}", *value) : "-";
}

// Names of folders often differ at their ends.
std::string short_name(const std::string& name) {
  constexpr std::size_t kWidth = 28;
  return name.size() <= kWidth ? name : ".." + name.substr(name.size() - kWidth + 2);
}

}  // namespace

std::optional<PhaseFigures> phase_figures(const SavedReport& report, Phase phase) {
  for (const PhaseResult& result : report.run.info.phases) {
    if (result.phase != phase) continue;
    std::vector<double> layers;
    for (const auto& [layer, ms] : layer_times(report, phase)) layers.push_back(ms);
    return PhaseFigures{.tokens = result.tokens,
                        .ms = result.ms,
                        .tokens_per_second = result.tokens_per_second,
                        .layer_ms = median(std::move(layers))};
  }
  return std::nullopt;
}

std::string note_of(const SavedReport& report) {
  const RunInfo& info = report.run.info;
  return info.shares_slabs() ? shared_slabs_note(info.model_layers, info.distinct_layers) : "";
}

std::string biggest_difference(const SavedReport& base, const SavedReport& other) {
  std::optional<PhaseChange> largest;
  for (const Phase phase : kPhases) {
    const auto from = phase_figures(base, phase), to = phase_figures(other, phase);
    if (!from || !to) continue;
    const PhaseChange change{phase, *from, *to};
    if (!largest || distance(change.speed()) > distance(largest->speed())) largest = change;
  }
  if (!largest) return "no phase in common";
  const auto& [phase, from, to] = *largest;
  const double speed = largest->speed();
  if (distance(speed) < kNoise) return fmt::format("as fast, within {:.0f} %", (kNoise - 1) * 100);
  const std::string verdict = fmt::format("{} is {:.2f} times as {}", phase_name(phase),
                                          distance(speed), speed > 1 ? "fast" : "slow");
  if (!largest->same_work())
    return fmt::format("{} ({:.4g} tokens/s instead of {:.4g}; passes of {} tokens instead of {})",
                       verdict, to.tokens_per_second, from.tokens_per_second, to.tokens,
                       from.tokens);
  std::string words =
      fmt::format("{} ({} instead of {} a pass)", verdict, format_ms(to.ms), format_ms(from.ms));
  if (const auto change = largest_change(base, other, phase))
    words += fmt::format("; most in layer {}: {} instead of {}", change->layer,
                         format_ms(change->to_ms), format_ms(change->from_ms));
  return words;
}

std::string comparison_table(const std::vector<SavedReport>& reports) {
  std::string table =
      fmt::format("{:<28} {:<9} {:>5} {:>7} {:>12} {:>12} {:>11} {:>11} {:>13} {:>12}\n", "run",
                  "command", "ranks", "weights", "prefill ms", "decode ms", "prefill t/s",
                  "decode t/s", "prefill layer", "decode layer");
  for (const SavedReport& report : reports) {
    const auto prefill = phase_figures(report, Phase::kPrefill);
    const auto decode = phase_figures(report, Phase::kDecode);
    const auto of = [](const auto& figures, double PhaseFigures::*member) {
      return number(figures ? std::optional((*figures).*member) : std::nullopt);
    };
    const RunInfo& info = report.run.info;
    table += fmt::format("{:<28} {:<9} {:>5} {:>7} {:>12} {:>12} {:>11} {:>11} {:>13} {:>12}\n",
                         short_name(report.name), info.command, info.ranks, info.weights,
                         of(prefill, &PhaseFigures::ms), of(decode, &PhaseFigures::ms),
                         of(prefill, &PhaseFigures::tokens_per_second),
                         of(decode, &PhaseFigures::tokens_per_second),
                         of(prefill, &PhaseFigures::layer_ms), of(decode, &PhaseFigures::layer_ms));
  }
  for (const SavedReport& report : reports)
    if (const std::string note = note_of(report); !note.empty())
      table += fmt::format("{}: {}\n", short_name(report.name), note);
  for (std::size_t i = 1; i < reports.size(); ++i)
    table += fmt::format("{} against {}: {}\n", short_name(reports[i].name),
                         short_name(reports[0].name), biggest_difference(reports[0], reports[i]));
  return table;
}

std::vector<nlohmann::ordered_json> comparison_json(const std::vector<SavedReport>& reports) {
  std::vector<nlohmann::ordered_json> objects;
  for (std::size_t i = 0; i < reports.size(); ++i) {
    const SavedReport& report = reports[i];
    const RunInfo& info = report.run.info;
    nlohmann::ordered_json object{{"name", report.name},         {"command", info.command},
                                  {"work", info.work},           {"model", info.model},
                                  {"weights", info.weights},     {"ranks", info.ranks},
                                  {"tokens_per_second", nullptr}};
    if (info.tokens_per_second) object["tokens_per_second"] = *info.tokens_per_second;
    for (const Phase phase : kPhases) {
      const std::string key(phase_name(phase));
      object[key] = nullptr;
      if (const auto figures = phase_figures(report, phase))
        object[key] = {{"ms", figures->ms},
                       {"tokens_per_second", figures->tokens_per_second},
                       {"layer_ms", figures->layer_ms},
                       {"critical_path", critical_path_of(report, phase)}};
    }
    object["model_layers"] = info.model_layers;
    object["distinct_layers"] = info.distinct_layers;
    object["difference"] = nullptr;
    if (i > 0) object["difference"] = biggest_difference(reports[0], report);
    objects.push_back(std::move(object));
  }
  return objects;
}

}  // namespace stagecoach
