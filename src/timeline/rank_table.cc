// The table of ranks for people.
#include <algorithm>
#include <numeric>

#include "base/byte_size.h"
#include "base/error.h"
#include "timeline/rank_split.h"

namespace stagecoach {
namespace {

constexpr std::size_t kMostRows = 16;

constexpr Activity kColumns[] = {Activity::kAttention, Activity::kMlp,        Activity::kEmbedding,
                                 Activity::kHead,      Activity::kWeightWait, Activity::kSend,
                                 Activity::kWait,      Activity::kOther};

std::string ms_text(double ms) {
  return fmt::format("{:.{}f}", ms, ms >= 1000 ? 0 : ms >= 100 ? 1 : 2);
}

std::string percent_text(double share) {
  return fmt::format("{:.0f} %", share * 100);
}

std::string line(const RankSplit& split) {
  std::string text =
      fmt::format("{:>4} {:<7} {:>7}", split.rank, phase_name(split.phase), ms_text(split.wall_ms));
  for (const Activity activity : kColumns)
    text += fmt::format(" {:>7}", ms_text(split.ms(activity)));
  text += fmt::format(" {:>6}", percent_text(split.busy));
  if (split.disk_ms <= 0)
    return text + fmt::format(" {:>7} {:>6} {:>6} {:>6}\n", "-", "-", "-", "-");
  return text + fmt::format(" {:>7} {:>6.2f} {:>6} {:>6}\n", format_bytes(split.read_bytes),
                            split.disk_gb_per_s(),
                            split.share_of_disk ? percent_text(*split.share_of_disk) : "-",
                            percent_text(split.disk_busy()));
}

std::string bus_line(const RankSplit& split) {
  if (split.bus_ms <= 0) return {};
  return fmt::format(
      "bus of rank {} in {}: {} a pass to its GPU, {:.2f} GB/s{}, busy {} of the time\n",
      split.rank, phase_name(split.phase), format_bytes(split.copied_bytes), split.bus_gb_per_s(),
      split.share_of_bus ? fmt::format(" ({} of its limit)", percent_text(*split.share_of_bus))
                         : std::string(),
      percent_text(split.bus_busy()));
}

// Those that idled least hold the others up.
std::vector<std::size_t> busiest(const std::vector<RankSplit>& splits) {
  std::vector<std::size_t> order(splits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return splits[a].busy > splits[b].busy; });
  order.resize(std::min(order.size(), kMostRows));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace

std::string format_rank_table(const std::vector<RankSplit>& splits) {
  if (splits.empty()) return {};
  std::string table = fmt::format(
      "{:>4} {:<7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6} {:>7} {:>6} {:>6} "
      "{:>6}\n",
      "rank", "phase", "wall ms", "attn", "mlp", "embed", "head", "wait", "send", "receive",
      "other", "busy", "read", "GB/s", "limit", "disk");
  const std::vector<std::size_t> shown = busiest(splits);
  for (const std::size_t i : shown) table += line(splits[i]);
  if (shown.size() < splits.size())
    table +=
        fmt::format("({} of {} ranks and phases, the busiest; --report DIR shows all of them)\n",
                    shown.size(), splits.size());
  for (const std::size_t i : shown) table += bus_line(splits[i]);
  return table;
}

std::string format_critical_paths(const std::vector<CriticalPath>& paths) {
  std::string text;
  for (const CriticalPath& path : paths)
    text += fmt::format("critical path of {}: {}\n", phase_name(path.phase), describe(path));
  return text;
}

}  // namespace stagecoach
