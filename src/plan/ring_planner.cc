#include "plan/ring_planner.h"

#include <algorithm>
#include <limits>

#include "plan/device_residency.h"
#include "plan/job_shape.h"
#include "plan/scheduler.h"

namespace stagecoach {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// `layers` over k windows, as evenly as can be.
std::vector<std::int64_t> spread_over_rounds(std::int64_t layers, int rounds) {
  std::vector<std::int64_t> windows;
  for (std::int64_t r = 0; r < rounds; ++r)
    windows.push_back((r + 1) * layers / rounds - r * layers / rounds);
  return windows;
}

Batches cut(std::int64_t rows, std::int64_t rows_each, std::int64_t passes) {
  const std::int64_t count = (rows + rows_each - 1) / rows_each;
  return {(rows + count - 1) / count, count, passes};
}

}  // namespace

RingPlanner::RingPlanner(const PlanQuestion& question, std::vector<std::size_t> hosts)
    : question_(question), hosts_(std::move(hosts)), costs_(question) {
  for (const int embedding : {0, 1})
    for (const int head : {0, 1}) sizes_[embedding][head] = question.slice_sizes(embedding, head);
}

std::optional<ClusterPlan> RingPlanner::best() {
  std::optional<ClusterPlan> best;
  const auto consider = [&](std::optional<ClusterPlan> plan) {
    if (plan && (!best || plan->job_seconds(question_) < best->job_seconds(question_)))
      best = std::move(plan);
  };
  if (ranks() > layers()) return best;
  consider(all_in_memory(true));
  consider(all_in_memory(false));
  const auto on_cpu = [](const HostPlan& host) { return host.layers_on_cpu() > 0; };
  // Layers are fastest where they are, unless that is with a slow processor beside a GPU.
  const bool in_memory = best.has_value();
  if (in_memory && std::none_of(best->hosts.begin(), best->hosts.end(), on_cpu)) return best;
  const auto streams = [](const HostPlan& host) {
    return host.residency.streamed > 0 || (host.device && host.device->streamed > 0);
  };
  for (const int rounds : candidate_rounds(layers(), ranks())) {
    if (rounds * ranks() > layers()) continue;
    auto plan = streamed(rounds);
    if (plan && (!in_memory || std::any_of(plan->hosts.begin(), plan->hosts.end(), streams)))
      consider(std::move(plan));
  }
  return best;
}

// Sequences in memory decode in as many groups as there are ranks; a pass is cut as prompts are.
Batches RingPlanner::step(bool in_passes) const {
  const std::int64_t rows = question_.sequences;
  return cut(rows,
             in_passes ? prefill_rows(rows, ranks(), question_.micro_batch)
                       : std::min((rows + ranks() - 1) / ranks(), question_.micro_batch),
             1);
}

// All of them come at once; what a pass cannot take waits for the next.
Batches RingPlanner::prompts(bool in_passes) const {
  const std::int64_t rows = question_.sequences * question_.prompt_tokens;
  const std::int64_t most = in_passes ? question_.largest_pass() : rows;
  const std::int64_t passes = (rows + most - 1) / most;
  const std::int64_t of_pass = (rows + passes - 1) / passes;
  return cut(of_pass, prefill_rows(of_pass, ranks(), question_.micro_batch), passes);
}

Work RingPlanner::step_work(int rank, std::int64_t rows) const {
  return costs_.layer(hosts_[static_cast<std::size_t>(rank)], costs_.step_rows(rows));
}

RingPlanner::Portion RingPlanner::Fit::portion() const {
  if (!split) return {.layers = static_cast<std::int64_t>(residency.pinned.size())};
  return {.layers = static_cast<std::int64_t>(split->on_cpu.size()),
          .cpu_layers = split->cpu_layers(),
          .crossings = split->crossings,
          .beside_copies = split->device.streamed > 0};
}

double RingPlanner::seconds_of(int rank, const Portion& portion, std::int64_t rows,
                               bool prompts) const {
  const std::size_t place = hosts_[static_cast<std::size_t>(rank)];
  const CostModel::LayerRows batch = prompts ? costs_.prompt_rows(rows) : costs_.step_rows(rows);
  const double seconds =
      static_cast<double>(portion.layers - portion.cpu_layers) * costs_.layer(place, batch).seconds;
  if (portion.cpu_layers == 0) return seconds;
  const double layer = costs_.cpu_layer(place, batch, portion.beside_copies).seconds;
  return seconds + static_cast<double>(portion.cpu_layers) * layer +
         static_cast<double>(portion.crossings) * costs_.crossing(place, rows);
}

PassCost RingPlanner::pass_cost(int rank, const Batches& batches, bool prompts) const {
  const std::size_t place = hosts_[static_cast<std::size_t>(rank)];
  const auto count = static_cast<double>(batches.count);
  const CostModel::LayerRows rows =
      prompts ? costs_.prompt_rows(batches.rows) : costs_.step_rows(batches.rows);
  return {.passes = static_cast<double>(prompts ? batches.passes : question_.new_tokens),
          .device_layer = count * costs_.layer(place, rows).seconds,
          .cpu_layer = count * costs_.cpu_layer(place, rows, false).seconds,
          .cpu_layer_beside_copies = count * costs_.cpu_layer(place, rows, true).seconds,
          .crossing = count * costs_.crossing(place, batches.rows),
          .one_micro_batch = !prompts && batches.count == 1};
}

ResidencyRequest RingPlanner::slice(int rank, const RankShape& shape,
                                    const std::vector<std::int64_t>& windows) const {
  return {
      .sizes = sizes(rank),
      .windows = windows,
      .ranks = ranks(),
      .memory = 0,
      .head_sweeps = question_.head_sweeps(step(shape.in_passes).rows, !shape.frugal) *
                     step(shape.in_passes).count,
      .one_micro_batch = question_.sequences <= std::min(kOneMicroBatch, question_.micro_batch)};
}

std::optional<DeviceSplit> RingPlanner::split_of(int rank, RankShape shape,
                                                 const ResidencyRequest& slice,
                                                 std::int64_t cpu_layers) const {
  shape.cpu_layers = cpu_layers;
  ResidencyRequest request = slice;
  request.memory = host(rank).memory - question_.other_memory(shape);
  return plan_split(request, host(rank).device_memory - question_.other_device_memory(shape),
                    cpu_layers);
}

std::optional<RingPlanner::Fit> RingPlanner::fit(int rank, const RankShape& shape,
                                                 const std::vector<std::int64_t>& windows) const {
  ResidencyRequest request = slice(rank, shape, windows);
  Fit fit;
  if (host(rank).on_device()) {
    const auto with = [&](std::int64_t cpu_layers) {
      return split_of(rank, shape, request, cpu_layers);
    };
    fit.split =
        question_.cpu_layers
            ? with(told_cpu_layers(shape.layers))
            : best_split(with, shape.layers,
                         {pass_cost(rank, prompts(true), true), pass_cost(rank, step(true), false)},
                         split_rates(rank));
    if (!fit.split) return std::nullopt;
    take_memory(fit, shape);
    return fit;
  }
  const std::int64_t other = question_.other_memory(shape);
  request.memory = host(rank).memory - other;
  const auto residency = plan_residency(request);
  if (!residency) return std::nullopt;
  fit.residency = *residency;
  fit.memory = other + residency->memory;
  return fit;
}

void RingPlanner::take_memory(Fit& fit, RankShape shape) const {
  shape.cpu_layers = fit.cpu_layers();
  fit.residency = fit.split->host;
  fit.memory = question_.other_memory(shape) + fit.split->host_memory;
  fit.device_memory = question_.other_device_memory(shape) + fit.split->device.memory;
}

// The fewest layers on the processor with which nothing passes over the bus or comes from disk.
std::optional<DeviceSplit> RingPlanner::split_in_memory(int rank, const RankShape& shape) const {
  const ResidencyRequest request = slice(rank, shape, {shape.layers});
  const auto with = [&](std::int64_t cpu_layers) {
    auto split = split_of(rank, shape, request, cpu_layers);
    return split && split->device.streamed == 0 && split->host.streamed == 0 ? split : std::nullopt;
  };
  if (question_.cpu_layers) return with(told_cpu_layers(shape.layers));
  const std::int64_t layer = sizes(rank).layer();
  const std::int64_t least = std::max<std::int64_t>(
      0, shape.layers - std::max<std::int64_t>(0, host(rank).device_memory) / layer);
  const std::int64_t most = std::min(shape.layers, host(rank).memory / layer);
  for (std::int64_t cpu_layers = least; cpu_layers <= most; ++cpu_layers)
    if (auto split = with(cpu_layers)) return split;
  return std::nullopt;
}

const std::optional<RingPlanner::Fit>& RingPlanner::in_memory(int rank, std::int64_t count) {
  const auto [known, added] = fits_.try_emplace({rank, count, 0});
  if (!added) return known->second;
  const HostSpec& spec = host(rank);
  const RankShape shape{.layers = count,
                        .largest_window = count,
                        .head = has_head(rank),
                        .in_passes = false,
                        .frugal = false,
                        .ranks = ranks(),
                        .on_device = spec.on_device()};
  Fit fit;
  if (spec.on_device()) {
    fit.split = split_in_memory(rank, shape);
    if (!fit.split) return known->second;
    take_memory(fit, shape);
    known->second = std::move(fit);
    return known->second;
  }
  const WeightSizes& size = sizes(rank);
  fit.memory = question_.other_memory(shape) + count * size.layer() + size.embedding_in_memory +
               size.head_in_memory - size.shared;
  fit.residency.pinned.assign(static_cast<std::size_t>(count), true);
  if (fit.memory <= spec.memory) known->second = std::move(fit);
  return known->second;
}

const std::optional<RingPlanner::Fit>& RingPlanner::in_ring(int rank, std::int64_t count,
                                                            int rounds) {
  const auto [known, added] = fits_.try_emplace({rank, count, rounds});
  if (!added) return known->second;
  const std::vector<std::int64_t> windows = spread_over_rounds(count, rounds);
  for (const bool frugal : {false, true}) {
    auto found = fit(rank,
                     {.layers = count,
                      .largest_window = *std::max_element(windows.begin(), windows.end()),
                      .head = has_head(rank),
                      .in_passes = true,
                      .frugal = frugal,
                      .ranks = ranks(),
                      .on_device = host(rank).on_device()},
                     windows);
    if (!found) continue;
    known->second = std::move(found);
    break;
  }
  return known->second;
}

template <typename Seconds>
std::optional<std::vector<std::int64_t>> RingPlanner::hand_out(std::int64_t least,
                                                               const Seconds& seconds) const {
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

bool RingPlanner::has_told_cpu_layers(const std::vector<std::int64_t>& counts) const {
  for (int rank = 0; rank < ranks(); ++rank)
    if (host(rank).on_device() &&
        counts[static_cast<std::size_t>(rank)] < question_.cpu_layers.value_or(0))
      return false;
  return true;
}

// Balanced: every host is done at the same time, which keeps all of them busy. Else the fastest
// hosts take what they can hold, which is best for one sequence.
std::optional<ClusterPlan> RingPlanner::all_in_memory(bool balanced) {
  const std::int64_t rows = step(false).rows;
  const auto counts = hand_out(1, [&](int rank, std::int64_t count) {
    const auto& fit = in_memory(rank, count);
    if (!fit) return kNever;
    const double seconds = seconds_of(rank, fit->portion(), rows, false);
    return balanced ? seconds : seconds / static_cast<double>(count);
  });
  if (!counts || !has_told_cpu_layers(*counts)) return std::nullopt;
  return assemble(*counts, 0);
}

std::optional<ClusterPlan> RingPlanner::streamed(int rounds) {
  const std::int64_t rows = step(true).rows;
  const auto counts = hand_out(rounds, [&](int rank, std::int64_t count) {
    const auto& fit = in_ring(rank, count, rounds);
    if (!fit) return kNever;
    // Among hosts that wait alike, the one that computes faster.
    const double disk = static_cast<double>(fit->residency.waited) / host(rank).rates.disk;
    const double bus =
        fit->split ? static_cast<double>(fit->split->device.waited) / host(rank).device.bus : 0;
    return std::max(disk, bus) + seconds_of(rank, fit->portion(), rows, false);
  });
  if (!counts || !has_told_cpu_layers(*counts)) return std::nullopt;
  return assemble(*counts, rounds);
}

ClusterPlan RingPlanner::assemble(const std::vector<std::int64_t>& counts, int rounds) {
  ClusterPlan plan;
  plan.stages.ranks = ranks();
  plan.in_passes = rounds > 0;
  plan.rounds = std::max(1, rounds);
  std::vector<std::vector<std::int64_t>> windows;
  for (const std::int64_t count : counts) windows.push_back(spread_over_rounds(count, plan.rounds));
  std::int64_t layer = 0;
  for (std::size_t round = 0; round < static_cast<std::size_t>(plan.rounds); ++round)
    for (int rank = 0; rank < ranks(); ++rank) {
      const std::int64_t count = windows[static_cast<std::size_t>(rank)][round];
      plan.stages.windows.push_back({layer, layer + count, rank});
      layer += count;
    }
  for (int rank = 0; rank < ranks(); ++rank) {
    const std::int64_t count = counts[static_cast<std::size_t>(rank)];
    const auto& fit = plan.in_passes ? in_ring(rank, count, rounds) : in_memory(rank, count);
    plan.hosts.push_back(host_plan(rank, count, *fit, plan.in_passes));
    plan.hosts.back().full = plan.in_passes ? fit->residency.streamed > 0 ||
                                                  (fit->split && fit->split->device.streamed > 0)
                                            : !in_memory(rank, count + 1);
  }
  predict(plan);
  return plan;
}

HostPlan RingPlanner::host_plan(int rank, std::int64_t count, const Fit& fit,
                                bool in_passes) const {
  const Batches steps = step(in_passes), of_prompts = prompts(in_passes);
  const Residency& residency = fit.residency;
  const Work work = step_work(rank, steps.rows);
  HostPlan plan;
  plan.host = hosts_[static_cast<std::size_t>(rank)];
  plan.layers = count;
  plan.residency = residency;
  if (fit.split) {
    plan.device = fit.split->device;
    plan.on_cpu = fit.split->on_cpu;
  }
  plan.memory = fit.memory;
  plan.device_memory = fit.device_memory;
  plan.disk_seconds = static_cast<double>(residency.waited) / host(rank).rates.disk;
  if (fit.split)
    plan.bus_seconds = static_cast<double>(fit.split->device.waited) / host(rank).device.bus;
  plan.step_seconds =
      static_cast<double>(steps.count) * seconds_of(rank, fit.portion(), steps.rows, false) +
      (has_head(rank) ? static_cast<double>(steps.count) * head_seconds(steps.rows, in_passes) : 0);
  plan.step_bound = work.bound;
  plan.prefill_seconds = static_cast<double>(of_prompts.count * of_prompts.passes) *
                         seconds_of(rank, fit.portion(), of_prompts.rows, true);
  plan.prefill_wait_seconds =
      static_cast<double>(residency.streamed * of_prompts.passes) / host(rank).rates.disk;
  // With a single slot a layer is not read while another is in use.
  if (residency.attention_slots == 1) plan.prefill_wait_seconds += plan.prefill_seconds;
  if (fit.split) {
    const PassCost cost = pass_cost(rank, of_prompts, true);
    plan.prefill_wait_seconds = std::max(
        plan.prefill_wait_seconds, cost.passes * pass_seconds(*fit.split, cost, split_rates(rank)));
  }
  return plan;
}

// When the last of these micro-batches, which enter together, is through all windows. Of a window
// of several layers none begins before all of its pass have come, nor leaves before all are done.
double RingPlanner::way_through(const ClusterPlan& plan, const Batches& batches,
                                bool prompts) const {
  std::vector<double> free(hosts_.size());  // when the rank has done what came so far
  double first = 0, last = 0;               // when these micro-batches come to the next window
  const double hop = ranks() == 1 ? 0 : costs_.hop(batches.rows);
  const auto followers = static_cast<double>(batches.count - 1);
  std::vector<std::size_t> gone(hosts_.size());  // layers of the rank's windows so far
  for (const Window& window : plan.stages.windows) {
    const auto rank = static_cast<std::size_t>(window.rank);
    const std::vector<bool>& on_cpu = plan.hosts[rank].on_cpu;
    const auto& device = plan.hosts[rank].device;
    Portion portion{.layers = window.end - window.begin,
                    .beside_copies = device && device->streamed > 0};
    for (std::int64_t i = 0; i < portion.layers && !on_cpu.empty(); ++i, ++gone[rank]) {
      if (!on_cpu[gone[rank]]) continue;
      ++portion.cpu_layers;
      if (i == 0 || !on_cpu[gone[rank] - 1]) portion.crossings += 2;
    }
    const double seconds = seconds_of(window.rank, portion, batches.rows, prompts);
    const bool gathers = plan.in_passes && portion.layers > 1;
    double& done = free[static_cast<std::size_t>(window.rank)];
    const double begin = std::max(gathers ? last : first, done);
    done = std::max(last, begin + followers * seconds) + seconds;
    first = (gathers ? done : begin + seconds) + hop;
    // Hidden states follow each other on the link, too.
    last = std::max(done + hop, first + followers * costs_.transfer(batches.rows));
  }
  return last;
}

void RingPlanner::predict(ClusterPlan& plan) const {
  const Batches steps = step(plan.in_passes), of_prompts = prompts(plan.in_passes);
  const auto slowest = [&](const auto& seconds) {
    return std::max_element(
        plan.hosts.begin(), plan.hosts.end(),
        [&](const HostPlan& a, const HostPlan& b) { return seconds(a) < seconds(b); });
  };
  const auto busiest = slowest([](const HostPlan& host) { return host.step_seconds; });
  const auto waits_most = slowest([](const HostPlan& host) { return host.wait_seconds(); });
  // In memory, steps follow each other without a gap; a pass comes out whole before the next one.
  const double through =
      way_through(plan, plan.in_passes ? steps : Batches{steps.rows, 1, 1}, false) +
      head_seconds(steps.rows, plan.in_passes);
  plan.step_seconds = std::max({through, busiest->step_seconds, waits_most->wait_seconds()});
  plan.hop_seconds =
      ranks() == 1 ? 0 : static_cast<double>(plan.stages.windows.size()) * costs_.hop(steps.rows);
  plan.tokens_per_second = static_cast<double>(question_.sequences) / plan.step_seconds;
  plan.time_to_first_token =
      head_seconds(1, plan.in_passes) +
      std::max({static_cast<double>(of_prompts.passes) * way_through(plan, of_prompts, true),
                slowest([](const HostPlan& h) { return h.prefill_seconds; })->prefill_seconds,
                slowest([](const HostPlan& h) {
                  return h.prefill_wait_seconds;
                })->prefill_wait_seconds});
  const bool by_waiting = waits_most->wait_seconds() >= plan.step_seconds;
  plan.bound = by_waiting                                 ? waits_most->wait_bound()
               : 2 * plan.hop_seconds > plan.step_seconds ? Bound::kNetwork
                                                          : busiest->step_bound;
  plan.bound_host = (by_waiting ? waits_most : busiest)->host;
}

}  // namespace stagecoach
