#include "plan/planner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "base/byte_size.h"
#include "base/error.h"
#include "plan/scheduler.h"

namespace stagecoach {
namespace {

// A host that saves less than this is not worth its risk.
constexpr double kWorthwhile = 0.99;
constexpr double kNever = std::numeric_limits<double>::infinity();

// Σ of `layers` over k turns, as even as can be.
std::vector<std::int64_t> spread_over_rounds(std::int64_t layers, int rounds) {
  std::vector<std::int64_t> windows;
  for (std::int64_t r = 0; r < rounds; ++r)
    windows.push_back((r + 1) * layers / rounds - r * layers / rounds);
  return windows;
}

// Micro-batches of a step or of the prompts, as the scheduler forms them.
struct Batches {
  std::int64_t rows = 1, count = 1;
};

Batches cut(std::int64_t rows, std::int64_t rows_each) {
  const std::int64_t count = (rows + rows_each - 1) / rows_each;
  return {(rows + count - 1) / count, count};
}

// Plans for one choice of hosts, in ring order.
class Planner {
 public:
  Planner(const PlanQuestion& question, std::vector<std::size_t> hosts)
      : question_(question), hosts_(std::move(hosts)), costs_(question) {
    for (const int embedding : {0, 1})
      for (const int head : {0, 1}) sizes_[embedding][head] = question.slice_sizes(embedding, head);
  }

  // The best of all ways; null when the model does not fit.
  std::optional<ClusterPlan> best() {
    std::optional<ClusterPlan> best;
    const auto consider = [&](std::optional<ClusterPlan> plan) {
      if (plan && (!best || plan->job_seconds(question_) < best->job_seconds(question_)))
        best = std::move(plan);
    };
    if (ranks() > layers()) return best;
    consider(all_in_memory(true));
    consider(all_in_memory(false));
    if (best) return best;
    for (const int rounds : candidate_rounds(layers(), ranks()))
      if (rounds * ranks() <= layers()) consider(streamed(rounds));
    return best;
  }

 private:
  struct Fit {
    Residency residency;
    std::int64_t memory = 0;
  };

  int ranks() const { return static_cast<int>(hosts_.size()); }
  std::int64_t layers() const { return question_.spec.num_hidden_layers; }
  const HostSpec& host(int rank) const {
    return question_.cluster.hosts[hosts_[static_cast<std::size_t>(rank)]];
  }
  // Sequences in memory decode in as many groups as there are ranks; a pass that streams is cut as
  // prompts are.
  Batches step(bool streams) const {
    const std::int64_t rows = question_.sequences;
    return cut(rows, streams ? prefill_rows(rows, ranks(), question_.micro_batch)
                             : std::min((rows + ranks() - 1) / ranks(), question_.micro_batch));
  }
  // All prompts, which come at once.
  Batches prefill() const {
    const std::int64_t rows = question_.sequences * question_.prompt_tokens;
    return cut(rows, prefill_rows(rows, ranks(), question_.micro_batch));
  }
  bool has_head(int rank) const { return rank + 1 == ranks(); }
  const WeightSizes& sizes(int rank) const {
    return sizes_[rank == 0 ? 1 : 0][has_head(rank) ? 1 : 0];
  }

  Work layer_work(int rank, std::int64_t rows) const {
    return costs_.layer(hosts_[static_cast<std::size_t>(rank)], rows);
  }
  double head_seconds(std::int64_t rows) const { return costs_.head(hosts_.back(), rows).seconds; }
  double hop_seconds(std::int64_t rows) const { return ranks() == 1 ? 0 : costs_.hop(rows); }

  std::optional<Fit> in_memory(int rank, std::int64_t count) const;
  std::optional<Fit> in_ring(int rank, std::int64_t count, int rounds);
  std::optional<ClusterPlan> all_in_memory(bool balanced);
  std::optional<ClusterPlan> streamed(int rounds);
  template <typename Seconds>
  std::optional<std::vector<std::int64_t>> hand_out(std::int64_t least, const Seconds& seconds);
  ClusterPlan assemble(const std::vector<std::int64_t>& counts, const std::vector<Fit>& fits,
                       int rounds);
  void predict(ClusterPlan& plan) const;

  const PlanQuestion& question_;
  const std::vector<std::size_t> hosts_;
  const CostModel costs_;
  WeightSizes sizes_[2][2];  // by whether the rank has the embedding, and the head
  std::map<std::tuple<int, std::int64_t, int>, std::optional<Fit>> fits_;
};

std::optional<Planner::Fit> Planner::in_memory(int rank, std::int64_t count) const {
  const WeightSizes& size = sizes(rank);
  const std::int64_t memory = question_.other_memory({.layers = count,
                                                      .largest_window = count,
                                                      .head = has_head(rank),
                                                      .in_passes = false,
                                                      .ranks = ranks()}) +
                              count * size.layer() + size.embedding_in_memory +
                              size.head_in_memory - size.shared;
  if (memory > host(rank).memory) return std::nullopt;
  return Fit{{.pinned = std::vector<bool>(static_cast<std::size_t>(count), true)}, memory};
}

std::optional<Planner::Fit> Planner::in_ring(int rank, std::int64_t count, int rounds) {
  const auto [known, added] = fits_.try_emplace({rank, count, rounds});
  if (!added) return known->second;
  const std::vector<std::int64_t> windows = spread_over_rounds(count, rounds);
  const std::int64_t other =
      question_.other_memory({.layers = count,
                              .largest_window = *std::max_element(windows.begin(), windows.end()),
                              .head = has_head(rank),
                              .in_passes = true,
                              .ranks = ranks()});
  auto residency = plan_residency({.sizes = sizes(rank),
                                   .windows = windows,
                                   .ranks = ranks(),
                                   .memory = host(rank).memory - other,
                                   .head_sweeps = 1,
                                   .one_micro_batch = step(true).count == 1});
  if (!residency) return std::nullopt;
  const std::int64_t memory = other + residency->memory;
  return known->second = Fit{*std::move(residency), memory};
}

// Layers for each rank, at least `least`: each goes where it is done soonest. seconds(rank, count)
// grows with count; kNever: does not fit.
template <typename Seconds>
std::optional<std::vector<std::int64_t>> Planner::hand_out(std::int64_t least,
                                                           const Seconds& seconds) {
  std::vector<std::int64_t> counts(hosts_.size(), least);
  std::vector<double> next;
  for (int rank = 0; rank < ranks(); ++rank) {
    if (seconds(rank, least) == kNever) return std::nullopt;
    next.push_back(seconds(rank, least + 1));
  }
  for (std::int64_t given = least * ranks(); given < layers(); ++given) {
    const auto best = std::min_element(next.begin(), next.end());
    if (*best == kNever) return std::nullopt;
    const auto rank = static_cast<std::size_t>(best - next.begin());
    ++counts[rank];
    *best = seconds(static_cast<int>(rank), counts[rank] + 1);
  }
  return counts;
}

// Balanced: every host is done at the same time, which keeps all of them busy. Else the fastest
// hosts take what they can hold, which is best for one sequence.
std::optional<ClusterPlan> Planner::all_in_memory(bool balanced) {
  const auto counts = hand_out(1, [&](int rank, std::int64_t count) {
    if (!in_memory(rank, count)) return kNever;
    const double layer = layer_work(rank, step(false).rows).seconds;
    return balanced ? static_cast<double>(count) * layer : layer;
  });
  if (!counts) return std::nullopt;
  std::vector<Fit> fits;
  for (int rank = 0; rank < ranks(); ++rank)
    fits.push_back(*in_memory(rank, (*counts)[static_cast<std::size_t>(rank)]));
  return assemble(*counts, fits, 1);
}

std::optional<ClusterPlan> Planner::streamed(int rounds) {
  const auto counts = hand_out(rounds, [&](int rank, std::int64_t count) {
    const auto fit = in_ring(rank, count, rounds);
    if (!fit) return kNever;
    // Among hosts that wait alike, the one that computes faster.
    return static_cast<double>(fit->residency.waited) / host(rank).rates.disk +
           static_cast<double>(count) * layer_work(rank, step(true).rows).seconds;
  });
  if (!counts) return std::nullopt;
  std::vector<Fit> fits;
  for (int rank = 0; rank < ranks(); ++rank)
    fits.push_back(*in_ring(rank, (*counts)[static_cast<std::size_t>(rank)], rounds));
  return assemble(*counts, fits, rounds);
}

ClusterPlan Planner::assemble(const std::vector<std::int64_t>& counts, const std::vector<Fit>& fits,
                              int rounds) {
  ClusterPlan plan;
  plan.stages.ranks = ranks();
  plan.rounds = rounds;
  std::vector<std::vector<std::int64_t>> windows;
  for (const std::int64_t count : counts) windows.push_back(spread_over_rounds(count, rounds));
  std::int64_t layer = 0;
  for (std::size_t round = 0; round < static_cast<std::size_t>(rounds); ++round)
    for (int rank = 0; rank < ranks(); ++rank) {
      const std::int64_t count = windows[static_cast<std::size_t>(rank)][round];
      plan.stages.windows.push_back({layer, layer + count, rank});
      layer += count;
    }
  const bool streams = std::any_of(fits.begin(), fits.end(),
                                   [](const Fit& fit) { return fit.residency.streamed > 0; });
  const Batches steps = step(streams), prompts = prefill();
  for (int rank = 0; rank < ranks(); ++rank) {
    const auto i = static_cast<std::size_t>(rank);
    const Residency& residency = fits[i].residency;
    const Work work = layer_work(rank, steps.rows);
    const double disk_seconds = static_cast<double>(residency.waited) / host(rank).rates.disk;
    const double step_seconds = static_cast<double>(counts[i] * steps.count) * work.seconds +
                                (has_head(rank) ? head_seconds(steps.rows) : 0);
    const bool more = rounds == 1 && residency.streamed == 0
                          ? in_memory(rank, counts[i] + 1).has_value()
                          : residency.streamed == 0;
    plan.hosts.push_back({.host = hosts_[i],
                          .layers = counts[i],
                          .residency = residency,
                          .memory = fits[i].memory,
                          .disk_seconds = disk_seconds,
                          .step_seconds = step_seconds,
                          .prefill_seconds = static_cast<double>(counts[i] * prompts.count) *
                                             layer_work(rank, prompts.rows).seconds,
                          .step_bound = disk_seconds > step_seconds ? Bound::kDisk : work.bound,
                          .full = !more});
  }
  predict(plan);
  return plan;
}

void Planner::predict(ClusterPlan& plan) const {
  const Batches steps = step(plan.streams()), prompts = prefill();
  // A micro-batch goes through all windows, and the others follow. Of a window of several layers
  // that stream none begins before all have come, nor leaves before all are done.
  const auto chain = [&](const Batches& batches) {
    double seconds = 0, slowest = 0;
    for (const Window& window : plan.stages.windows) {
      const auto count = static_cast<double>(window.end - window.begin);
      const bool gathers = plan.streams() && count > 1;
      const double in_window = count * layer_work(window.rank, batches.rows).seconds;
      const double hop = hop_seconds(batches.rows);
      seconds += hop + (gathers ? static_cast<double>(batches.count) * in_window : in_window);
      if (!gathers) slowest = std::max({slowest, in_window, hop});
    }
    return seconds + static_cast<double>(batches.count - 1) * slowest;
  };
  plan.hop_seconds = static_cast<double>(plan.stages.windows.size()) * hop_seconds(steps.rows);
  double busy = 0, busy_prefill = 0, disk = 0, disk_prefill = 0;
  std::size_t busiest = 0, slowest_disk = 0;
  for (std::size_t i = 0; i < plan.hosts.size(); ++i) {
    const HostPlan& host = plan.hosts[i];
    busy_prefill = std::max(busy_prefill, host.prefill_seconds);
    disk_prefill = std::max(disk_prefill, static_cast<double>(host.residency.streamed) /
                                              question_.cluster.hosts[host.host].rates.disk);
    if (host.step_seconds > busy) busiest = i;
    busy = std::max(busy, host.step_seconds);
    if (host.disk_seconds > disk) slowest_disk = i;
    disk = std::max(disk, host.disk_seconds);
  }
  // In memory, steps follow each other without a gap; a pass comes out whole before the next one.
  const double through =
      chain(plan.streams() ? steps : Batches{steps.rows, 1}) + head_seconds(steps.rows);
  plan.step_seconds = std::max({through, busy, disk});
  plan.tokens_per_second = static_cast<double>(question_.sequences) / plan.step_seconds;
  plan.time_to_first_token =
      std::max({chain(prompts), busy_prefill, disk_prefill}) + head_seconds(1);
  if (disk >= plan.step_seconds) {
    plan.bound = Bound::kDisk;
    plan.bound_host = plan.hosts[slowest_disk].host;
  } else if (2 * plan.hop_seconds > plan.step_seconds) {
    plan.bound = Bound::kNetwork;
    plan.bound_host = plan.hosts[busiest].host;
  } else {
    plan.bound = plan.hosts[busiest].step_bound == Bound::kDisk ? Bound::kMemoryRate
                                                                : plan.hosts[busiest].step_bound;
    plan.bound_host = plan.hosts[busiest].host;
  }
}

std::vector<std::size_t> without(const std::vector<std::size_t>& hosts, std::size_t host) {
  std::vector<std::size_t> rest;
  for (const std::size_t other : hosts)
    if (other != host) rest.push_back(other);
  return rest;
}

// What one layer costs on a host, with its weights in memory or on disk.
double slowness(const CostModel& costs, std::size_t host) {
  return costs.layer(host, 1).seconds + costs.layer_read_seconds(host);
}

std::int64_t smallest_rank(const PlanQuestion& question) {
  return question.other_memory(
             {.layers = 1, .largest_window = 1, .head = false, .in_passes = true, .ranks = 2}) +
         smallest_memory({.sizes = question.slice_sizes(false, false), .windows = {1}});
}

}  // namespace

std::int64_t HostPlan::layers_in_memory() const {
  return std::count(residency.pinned.begin(), residency.pinned.end(), true);
}

bool ClusterPlan::streams() const {
  return std::any_of(hosts.begin(), hosts.end(),
                     [](const HostPlan& host) { return host.residency.streamed > 0; });
}

double ClusterPlan::job_seconds(const PlanQuestion& question) const {
  return time_to_first_token + static_cast<double>(question.new_tokens) * step_seconds;
}

ClusterPlan plan_cluster(const PlanQuestion& question) {
  const ClusterSpec& cluster = question.cluster;
  STAGECOACH_CHECK(!cluster.hosts.empty());
  std::vector<std::size_t> hosts;
  std::vector<LeftOut> left_out;
  const std::int64_t smallest = smallest_rank(question);
  std::int64_t memory = 0;
  for (std::size_t i = 0; i < cluster.hosts.size(); ++i) {
    const HostSpec& host = cluster.hosts[i];
    STAGECOACH_CHECK(host.memory > 0 && host.rates.complete());
    memory += host.memory;
    if (host.memory >= smallest) {
      hosts.push_back(i);
    } else {
      left_out.push_back(
          {i, fmt::format("{} of memory cannot hold one layer and what a rank needs, {}",
                          format_bytes(host.memory), format_bytes(smallest))});
    }
  }
  const CostModel costs(question);
  // From the slowest on, those without which the job ends sooner, or as soon.
  std::vector<std::size_t> slowest_first = hosts;
  std::stable_sort(slowest_first.begin(), slowest_first.end(), [&](std::size_t a, std::size_t b) {
    return slowness(costs, a) > slowness(costs, b);
  });
  std::optional<ClusterPlan> best;
  if (!hosts.empty()) best = Planner(question, hosts).best();
  for (const std::size_t host : slowest_first) {
    if (hosts.size() == 1) break;
    const std::vector<std::size_t> rest = without(hosts, host);
    auto plan = Planner(question, rest).best();
    if (!plan) {
      if (best) break;
      hosts = rest;  // more hosts than layers, or this one cannot hold its end of the model
      left_out.push_back({host, "the model does not fit with it in the ring"});
      continue;
    }
    const double with = best ? best->job_seconds(question) : kNever;
    const double alone = plan->job_seconds(question);
    if (best && with <= kWorthwhile * alone) break;
    left_out.push_back(
        {host,
         !best ? std::string("there are more hosts than layers")
               : fmt::format("the job takes {:.3g} s with it and {:.3g} s without", with, alone)});
    best = std::move(plan);
    hosts = rest;
  }
  if (!best)
    throw resource_error(
        fmt::format(
            "these {} hosts cannot hold the model: they have {} of memory altogether, and each "
            "rank needs {} for one layer and what is not weights, the first and the last one "
            "more for the ends of the model",
            cluster.hosts.size(), format_bytes(memory), format_bytes(smallest)),
        "more memory = in [nodes], a smaller --micro-batch, or weights of fewer bits");
  best->left_out = std::move(left_out);
  return *best;
}

}  // namespace stagecoach
