#include "plan/stage_plan.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"

namespace stagecoach {
namespace {

// Bytes of a window of `layers` layers that is the `index`-th of `count`.
std::int64_t window_bytes(const PlanCosts& costs, std::int64_t layers, std::int64_t index,
                          std::int64_t count) {
  return layers * costs.layer_bytes + (index == 0 ? costs.embedding_bytes : 0) +
         (index + 1 == count ? costs.head_bytes : 0);
}

// Number of layers in each of `count` windows: the largest window as small as possible, the rest as
// even as that allows, earlier windows taking what is left over.
std::vector<std::int64_t> balanced_sizes(const PlanCosts& costs, std::int64_t layers,
                                         std::int64_t count) {
  std::vector<std::int64_t> sizes(static_cast<std::size_t>(count), 1);
  // Layers are alike, so giving each next layer to the window that stays lightest is optimal.
  for (std::int64_t given = count; given < layers; ++given) {
    std::size_t best = 0;
    std::int64_t best_bytes = std::numeric_limits<std::int64_t>::max();
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const std::int64_t bytes =
          window_bytes(costs, sizes[i] + 1, static_cast<std::int64_t>(i), count);
      if (bytes < best_bytes) {
        best = i;
        best_bytes = bytes;
      }
    }
    ++sizes[best];
  }
  return sizes;
}

std::int64_t parse_index(std::string_view text, const std::string& whole) {
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size() ||
      text.front() == '-')
    throw usage_error(fmt::format("'{}' is not a layer range", whole),
                      "write A:B, 0-based and half-open, like 0:12");
  return value;
}

}  // namespace

std::vector<std::pair<std::int64_t, std::int64_t>> StagePlan::layers_of(int rank) const {
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;
  for (const Window& window : windows)
    if (window.rank == rank) ranges.emplace_back(window.begin, window.end);
  return ranges;
}

std::string StagePlan::describe(int rank) const {
  constexpr std::size_t kMostWindows = 4;
  const auto ranges = layers_of(rank);
  std::string text;
  for (std::size_t i = 0; i < std::min(ranges.size(), kMostWindows); ++i)
    text +=
        fmt::format("{}{}:{}", text.empty() ? "layers " : ",", ranges[i].first, ranges[i].second);
  if (ranges.size() > kMostWindows) text += fmt::format(",... ({} windows)", ranges.size());
  return text;
}

std::int64_t StagePlan::largest_window() const {
  std::int64_t largest = 0;
  for (const Window& window : windows) largest = std::max(largest, window.end - window.begin);
  return largest;
}

StagePlan balanced_plan(const PlanCosts& costs, std::int64_t begin, std::int64_t end, int ranks,
                        int rounds) {
  STAGECOACH_CHECK(ranks > 0 && rounds > 0 && begin < end);
  const std::int64_t layers = end - begin;
  const std::int64_t all = static_cast<std::int64_t>(ranks) * rounds;
  const std::int64_t count = std::min(all, layers);
  if (ranks > layers || all - ranks >= layers) {
    const std::string wanted = rounds == 1 ? fmt::format("{} ranks", ranks)
                                           : fmt::format("{} ranks with {} rounds", ranks, rounds);
    throw usage_error(fmt::format("{} need at least {} layers, the model has {}", wanted,
                                  std::max<std::int64_t>(ranks, all - ranks + 1), layers),
                      layers < ranks
                          ? fmt::format("start at most {} ranks (mpirun -np {})", layers, layers)
                          : fmt::format("use at most --rounds {}", (layers + ranks - 1) / ranks));
  }
  StagePlan plan{.ranks = ranks, .windows = {}};
  std::int64_t next = begin;
  for (std::int64_t size : balanced_sizes(costs, layers, count)) {
    plan.windows.push_back({next, next + size, static_cast<int>(plan.windows.size()) % ranks});
    next += size;
  }
  return plan;
}

StagePlan explicit_plan(const std::string& text, std::int64_t begin, std::int64_t end, int ranks) {
  StagePlan plan{.ranks = ranks, .windows = {}};
  std::int64_t next = begin;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const auto [window_begin, window_end] = parse_layer_range(text.substr(at, comma - at), end);
    if (window_begin != next)
      throw usage_error(
          fmt::format("--windows {}: expected a window that begins at layer {}, found {}:{}", text,
                      next, window_begin, window_end));
    plan.windows.push_back(
        {window_begin, window_end, static_cast<int>(plan.windows.size()) % ranks});
    next = window_end;
    at = comma + 1;
  }
  if (next != end)
    throw usage_error(fmt::format(
        "--windows {}: expected the last window to end at layer {}, found {}", text, end, next));
  if (plan.windows.size() < static_cast<std::size_t>(ranks))
    throw usage_error(
        fmt::format("--windows {}: expected one window per rank ({}) or more, found {}", text,
                    ranks, plan.windows.size()));
  return plan;
}

std::pair<std::int64_t, std::int64_t> parse_layer_range(const std::string& text,
                                                        std::int64_t limit) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) parse_index("", text);
  const std::int64_t begin = parse_index(std::string_view(text).substr(0, colon), text);
  const std::int64_t end = parse_index(std::string_view(text).substr(colon + 1), text);
  if (begin >= end || end > limit)
    throw usage_error(fmt::format("layer range {} is {}: expected 0 ≤ A < B ≤ {}", text,
                                  begin >= end ? "empty" : "beyond the end", limit),
                      fmt::format("0:{} is all of them", limit));
  return {begin, end};
}

std::string windows_flag(const StagePlan& plan) {
  std::string text;
  for (const Window& window : plan.windows)
    text += fmt::format("{}{}:{}", text.empty() ? "" : ",", window.begin, window.end);
  return text;
}

Json to_json(const StagePlan& plan) {
  Json windows = Json::array();
  for (const Window& window : plan.windows)
    windows.push_back(
        {{"layers", fmt::format("{}:{}", window.begin, window.end)}, {"rank", window.rank}});
  return {{"format", "stagecoach-plan"},
          {"version", 1},
          {"ranks", plan.ranks},
          {"windows", std::move(windows)}};
}

std::uint64_t plan_hash(const StagePlan& plan) {
  return xxh3(as_bytes(to_json(plan).dump()));
}

}  // namespace stagecoach
