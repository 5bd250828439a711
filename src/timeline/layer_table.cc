// The per-layer table for people.
#include <algorithm>
#include <map>
#include <utility>

#include "base/byte_size.h"
#include "base/error.h"
#include "timeline/report.h"

namespace stagecoach {
namespace {

constexpr std::size_t kMaxLines = 40;
constexpr std::size_t kMaxTotals = 12;

using Group = std::pair<int, Phase>;  // rank and phase
Group group_of(const LayerRow& row) {
  return {row.rank, row.phase};
}

// Within 120 columns. Copies to a GPU have a column where the job has one, devices where a rank has
// two.
class Lines {
 public:
  Lines(bool copies, bool devices) : copies_(copies), devices_(devices) {}

  std::string header(const char* first) const {
    const std::string copy = copies_ ? fmt::format(" {:>8}", "copy") : std::string();
    return fmt::format(
        "{:>6} {:>4}  {:<{}} {:<7} {:>{}} {:>{}} {:>{}} {:>8} {:>8}{} {:>7} {:>7} {:>8} {:>6}\n",
        first, "rank", "host", host_width(), "phase", "ms", time_width(),
        copies_ ? "attn" : "attention", time_width(), "mlp", time_width(), "wait", "read", copy,
        "weights", "GB/s", "GFLOP/s", "limit");
  }

  std::string line(const std::string& first, const LayerRow& row) const {
    const std::string limit =
        row.share_of_limit ? fmt::format("{:.0f} %", *row.share_of_limit * 100) : "-";
    const std::string copy = copies_ ? fmt::format(" {:>8.3f}", row.copy_ms) : std::string();
    return fmt::format(
        "{:>6} {:>4}  {:<{}} {:<7} {:>{}.3f} {:>{}.3f} {:>{}.3f} {:>8.3f} {:>8.3f}{} {:>7} "
        "{:>7.2f} {:>8.2f} {:>6}{}\n",
        first, row.rank, short_host(row.host), host_width(), phase_name(row.phase), row.ms,
        time_width(), row.attention_ms, time_width(), row.mlp_ms, time_width(), row.wait_ms,
        row.read_ms, copy, format_bytes(row.bytes), row.gb_per_s(), row.gflop_per_s(), limit,
        devices_ && !row.device.empty() ? " " + row.device : "");
  }

 private:
  std::size_t host_width() const { return copies_ ? 8 : 12; }
  std::size_t time_width() const { return copies_ ? 8 : 9; }
  std::string short_host(const std::string& host) const {
    return host.size() <= host_width() ? host : host.substr(0, host_width() - 2) + "..";
  }

  bool copies_, devices_;
};

bool has_two_devices(const std::vector<LayerRow>& rows) {
  std::map<int, std::string> devices;
  return std::any_of(rows.begin(), rows.end(), [&](const LayerRow& row) {
    return devices.try_emplace(row.rank, row.device).first->second != row.device;
  });
}

// The layers of one rank and phase added up; a sum of medians, which is what the rows show.
struct Total {
  LayerRow sum;
  std::int64_t layers = 0;
  double limited_ms = 0;  // compute time, weighted by share of limit
  bool probed = true;
};

std::map<Group, Total> totals_of(const std::vector<LayerRow>& rows) {
  std::map<Group, Total> totals;
  for (const LayerRow& row : rows) {
    Total& total = totals[group_of(row)];
    LayerRow& sum = total.sum;
    sum.rank = row.rank;
    sum.host = row.host;
    sum.phase = row.phase;
    sum.ms += row.ms;
    sum.read_ms += row.read_ms;
    sum.copy_ms += row.copy_ms;
    sum.wait_ms += row.wait_ms;
    sum.compute_ms += row.compute_ms;
    sum.attention_ms += row.attention_ms;
    sum.mlp_ms += row.mlp_ms;
    // Of rates that the same limit binds, the share of their whole.
    if (row.share_of_limit) total.limited_ms += *row.share_of_limit * row.compute_ms;
    total.probed = total.probed && row.share_of_limit.has_value();
    sum.bytes += row.bytes;
    sum.flops += row.flops;
    ++total.layers;
  }
  for (auto& [group, total] : totals)
    if (total.probed && total.sum.compute_ms > 0)
      total.sum.share_of_limit = total.limited_ms / total.sum.compute_ms;
  return totals;
}

// Which rows to show when not all fit: every group's slowest, first and last, then the slowest of
// the rest.
std::vector<std::size_t> choose_rows(const std::vector<LayerRow>& rows, std::size_t count) {
  std::vector<std::size_t> slowest_first(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) slowest_first[i] = i;
  std::stable_sort(slowest_first.begin(), slowest_first.end(),
                   [&](std::size_t a, std::size_t b) { return rows[a].ms > rows[b].ms; });
  std::vector<std::size_t> wanted;
  std::map<Group, std::pair<std::size_t, std::size_t>> ends;  // first and last row of each group
  for (const std::size_t i : slowest_first) {
    const auto [it, added] = ends.try_emplace(group_of(rows[i]), i, i);
    if (added) wanted.push_back(i);
    it->second.first = std::min(it->second.first, i);
    it->second.second = std::max(it->second.second, i);
  }
  for (const auto& [group, first_last] : ends) {
    wanted.push_back(first_last.first);
    wanted.push_back(first_last.second);
  }
  wanted.insert(wanted.end(), slowest_first.begin(), slowest_first.end());

  std::vector<std::size_t> chosen;
  for (const std::size_t i : wanted) {
    if (chosen.size() == count) break;
    if (std::find(chosen.begin(), chosen.end(), i) == chosen.end()) chosen.push_back(i);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace

std::string format_layer_table(const std::vector<LayerRow>& rows) {
  if (rows.empty()) return {};
  const std::map<Group, Total> totals = totals_of(rows);
  const std::size_t total_lines = std::min(totals.size(), kMaxTotals);
  // Two headers, a note about rows left out and one about ranks left out.
  const std::size_t row_lines = std::min(rows.size(), kMaxLines - total_lines - 4);

  const Lines lines(has_gpu(rows), has_two_devices(rows));
  std::string table = lines.header("layer");
  for (const std::size_t i : choose_rows(rows, row_lines))
    table += lines.line(std::to_string(rows[i].layer), rows[i]);
  if (row_lines < rows.size())
    table +=
        fmt::format("({} of {} rows; --report DIR writes all of them)\n", row_lines, rows.size());

  table += lines.header("layers");
  std::size_t shown = 0;
  for (const auto& [group, total] : totals) {
    if (shown++ == total_lines) break;
    table += lines.line(std::to_string(total.layers), total.sum);
  }
  if (total_lines < totals.size())
    table += fmt::format("({} of {} totals)\n", total_lines, totals.size());
  return table;
}

}  // namespace stagecoach
