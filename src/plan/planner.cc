#include "plan/planner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "base/byte_size.h"
#include "base/error.h"

namespace stagecoach {
namespace {

// Shares of the measured limits that kernels reach (docs/performance.md).
constexpr double kMemoryShare = 0.9;
constexpr double kFewRowsShare = 0.6;  // of the arithmetic, up to kFewRows rows
constexpr std::int64_t kFewRows = 48;
constexpr double kManyRowsShare[] = {0.85, 0.8, 0.65};  // by Arithmetic
// Some fifteen operations, each handed to threads.
constexpr double kLayerOverhead = 60e-6;
// A host that saves less than this is not worth its risk.
constexpr double kWorthwhile = 0.99;
constexpr double kNever = std::numeric_limits<double>::infinity();

double arithmetic_rate(const HostRates& rates, Arithmetic arithmetic) {
  return arithmetic == Arithmetic::kF32    ? rates.f32
         : arithmetic == Arithmetic::kBF16 ? rates.bf16
                                           : rates.int8;
}

// Seconds of work on `bytes` of weights, and what they are bound by.
struct Work {
  double seconds = 0;
  Bound bound = Bound::kMemoryRate;
};

Work work_of(const HostRates& rates, Arithmetic arithmetic, std::int64_t bytes, std::int64_t flops,
             std::int64_t rows) {
  const double share =
      rows <= kFewRows ? kFewRowsShare : kManyRowsShare[static_cast<int>(arithmetic)];
  const double reading = static_cast<double>(bytes) / (kMemoryShare * rates.memory);
  const double computing =
      static_cast<double>(flops) / (share * arithmetic_rate(rates, arithmetic));
  return computing > reading ? Work{computing, Bound::kArithmetic}
                             : Work{reading, Bound::kMemoryRate};
}

// Σ of `layers` over k turns, as even as can be.
std::vector<std::int64_t> spread_over_rounds(std::int64_t layers, int rounds) {
  std::vector<std::int64_t> windows;
  for (std::int64_t r = 0; r < rounds; ++r)
    windows.push_back((r + 1) * layers / rounds - r * layers / rounds);
  return windows;
}

// Plans for one choice of hosts, in ring order.
class Planner {
 public:
  Planner(const PlanQuestion& question, std::vector<std::size_t> hosts)
      : question_(question), hosts_(std::move(hosts)) {
    for (const int embedding : {0, 1})
      for (const int head : {0, 1}) sizes_[embedding][head] = question.slice_sizes(embedding, head);
    const std::int64_t micro_batches = std::min<std::int64_t>(question.sequences, ranks());
    step_rows_ = (question.sequences + micro_batches - 1) / micro_batches;
    step_batches_ = (question.sequences + step_rows_ - 1) / step_rows_;
    prefill_batches_ = (question.prompt_tokens + question.micro_batch - 1) / question.micro_batch;
    prefill_rows_ = (question.prompt_tokens + prefill_batches_ - 1) / prefill_batches_;
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
  bool has_head(int rank) const { return rank + 1 == ranks(); }
  const WeightSizes& sizes(int rank) const {
    return sizes_[rank == 0 ? 1 : 0][has_head(rank) ? 1 : 0];
  }

  // One layer, with a context of the prompt before each row.
  Work layer_work(int rank, std::int64_t rows) const {
    Work work = work_of(host(rank).rates, question_.arithmetic, question_.layer_bytes,
                        layer_flops(question_.spec, rows,
                                    rows * std::max<std::int64_t>(1, question_.prompt_tokens / 2)),
                        rows);
    work.seconds += kLayerOverhead;
    return work;
  }
  double head_seconds(std::int64_t rows) const {
    return work_of(host(ranks() - 1).rates, question_.arithmetic, question_.head_bytes,
                   head_flops(question_.spec, rows), rows)
        .seconds;
  }
  double hop_seconds(std::int64_t rows) const {
    if (ranks() == 1) return 0;
    const NetworkSpec& network = question_.cluster.network;
    const double bytes = static_cast<double>(rows * question_.spec.hidden_size) * sizeof(float);
    return network.latency + bytes / network.bytes_per_second;
  }

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
  WeightSizes sizes_[2][2];  // by whether the rank has the embedding, and the head
  std::int64_t step_rows_ = 1, step_batches_ = 1;        // a step's micro-batches
  std::int64_t prefill_rows_ = 1, prefill_batches_ = 1;  // a prompt's
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
                                   .one_micro_batch = step_batches_ == 1});
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
    const double layer = layer_work(rank, step_rows_).seconds;
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
           static_cast<double>(count) * layer_work(rank, step_rows_).seconds;
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
  for (int rank = 0; rank < ranks(); ++rank) {
    const auto i = static_cast<std::size_t>(rank);
    const Residency& residency = fits[i].residency;
    const Work step = layer_work(rank, step_rows_);
    const double disk_seconds = static_cast<double>(residency.waited) / host(rank).rates.disk;
    const double step_seconds = static_cast<double>(counts[i] * step_batches_) * step.seconds +
                                (has_head(rank) ? head_seconds(step_rows_) : 0);
    const bool more = rounds == 1 && residency.streamed == 0
                          ? in_memory(rank, counts[i] + 1).has_value()
                          : residency.streamed == 0;
    plan.hosts.push_back(
        {.host = hosts_[i],
         .layers = counts[i],
         .pinned = std::count(residency.pinned.begin(), residency.pinned.end(), true),
         .memory = fits[i].memory,
         .streamed = residency.streamed,
         .disk_seconds = disk_seconds,
         .step_seconds = step_seconds,
         .prefill_seconds = static_cast<double>(counts[i] * prefill_batches_) *
                            layer_work(rank, prefill_rows_).seconds,
         .step_bound = disk_seconds > step_seconds ? Bound::kDisk : step.bound,
         .full = !more});
  }
  predict(plan);
  return plan;
}

void Planner::predict(ClusterPlan& plan) const {
  // A micro-batch goes through all windows; in a window of several layers it waits for the others
  // of its pass to leave each layer but the last.
  const auto chain = [&](std::int64_t rows, std::int64_t batches) {
    double seconds = 0, slowest = 0;
    for (const Window& window : plan.stages.windows) {
      const double layer = layer_work(window.rank, rows).seconds;
      const auto count = static_cast<double>(window.end - window.begin);
      const double in_window =
          plan.streams() ? ((count - 1) * static_cast<double>(batches) + 1) * layer : count * layer;
      seconds += in_window + hop_seconds(rows);
      slowest = std::max({slowest, plan.streams() ? layer : in_window, hop_seconds(rows)});
    }
    return seconds + static_cast<double>(batches - 1) * slowest;
  };
  plan.hop_seconds = static_cast<double>(plan.stages.windows.size()) * hop_seconds(step_rows_);
  double busy = 0, busy_prefill = 0, disk = 0, disk_prefill = 0;
  std::size_t busiest = 0, slowest_disk = 0;
  for (std::size_t i = 0; i < plan.hosts.size(); ++i) {
    const HostPlan& host = plan.hosts[i];
    busy_prefill = std::max(busy_prefill, host.prefill_seconds);
    disk_prefill = std::max(disk_prefill, static_cast<double>(host.streamed) /
                                              question_.cluster.hosts[host.host].rates.disk);
    if (host.step_seconds > busy) busiest = i;
    busy = std::max(busy, host.step_seconds);
    if (host.disk_seconds > disk) slowest_disk = i;
    disk = std::max(disk, host.disk_seconds);
  }
  const double through = chain(step_rows_, step_batches_) + head_seconds(step_rows_);
  plan.step_seconds = std::max({through, busy, disk});
  plan.tokens_per_second = static_cast<double>(question_.sequences) / plan.step_seconds;
  // Prompts follow each other.
  plan.time_to_first_token =
      std::max({chain(prefill_rows_, prefill_batches_), busy_prefill, disk_prefill}) +
      head_seconds(1);
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
double slowness(const PlanQuestion& question, const HostSpec& host) {
  return work_of(host.rates, question.arithmetic, question.layer_bytes, 0, 1).seconds +
         static_cast<double>(question.layer_bytes) / host.rates.disk;
}

std::int64_t smallest_rank(const PlanQuestion& question) {
  return question.other_memory(
             {.layers = 1, .largest_window = 1, .head = false, .in_passes = true, .ranks = 2}) +
         smallest_memory({.sizes = question.slice_sizes(false, false), .windows = {1}});
}

}  // namespace

std::string_view bound_name(Bound bound) {
  switch (bound) {
    case Bound::kDisk:
      return "disk";
    case Bound::kMemoryRate:
      return "memory bandwidth";
    case Bound::kArithmetic:
      return "arithmetic";
    case Bound::kNetwork:
      return "network";
  }
  return "";
}

bool ClusterPlan::streams() const {
  return std::any_of(hosts.begin(), hosts.end(),
                     [](const HostPlan& host) { return host.streamed > 0; });
}

double ClusterPlan::job_seconds(const PlanQuestion& question) const {
  return static_cast<double>(question.sequences) * time_to_first_token +
         static_cast<double>(question.new_tokens) * step_seconds;
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
  // From the slowest on, those without which the job ends sooner, or as soon.
  std::vector<std::size_t> slowest_first = hosts;
  std::stable_sort(slowest_first.begin(), slowest_first.end(), [&](std::size_t a, std::size_t b) {
    return slowness(question, cluster.hosts[a]) > slowness(question, cluster.hosts[b]);
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
