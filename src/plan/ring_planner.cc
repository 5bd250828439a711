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
  if (best) return best;
  for (const int rounds : candidate_rounds(layers(), ranks()))
    if (rounds * ranks() <= layers()) consider(streamed(rounds));
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
  return costs_.step_layer(hosts_[static_cast<std::size_t>(rank)], rows);
}
Work RingPlanner::prompt_work(int rank, std::int64_t rows) const {
  return costs_.prompt_layer(hosts_[static_cast<std::size_t>(rank)], rows);
}

std::optional<RingPlanner::Fit> RingPlanner::fit(int rank, const RankShape& shape,
                                                 const std::vector<std::int64_t>& windows) const {
  const HostSpec& spec = host(rank);
  const std::int64_t other = question_.other_memory(shape);
  const ResidencyRequest slice{
      .sizes = sizes(rank),
      .windows = windows,
      .ranks = ranks(),
      .memory = spec.memory - other,
      .head_sweeps = question_.head_sweeps(step(shape.in_passes).rows, !shape.frugal) *
                     step(shape.in_passes).count,
      .one_micro_batch = question_.sequences <= std::min(kOneMicroBatch, question_.micro_batch)};
  Fit fit;
  if (spec.on_device()) {
    const std::int64_t other_device = question_.other_device_memory(shape);
    fit.device = plan_device(slice, spec.device_memory - other_device);
    if (!fit.device) return std::nullopt;
    fit.device_memory = other_device + fit.device->memory;
  }
  const auto residency =
      fit.device ? plan_host(beside_device(slice, *fit.device)) : plan_residency(slice);
  if (!residency) return std::nullopt;
  fit.residency = *residency;
  fit.memory = other + residency->memory;
  return fit;
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
  const WeightSizes& size = sizes(rank);
  Fit fit;
  fit.memory = question_.other_memory(shape);
  if (spec.on_device()) {
    const WeightSizes there = sizes_on_device(size);
    fit.device_memory = question_.other_device_memory(shape) + count * there.layer() +
                        there.embedding_in_memory + there.head_in_memory;
    fit.memory += size.embedding_in_memory + size.head_on_disk;
    fit.device.emplace().pinned.assign(static_cast<std::size_t>(count), true);
  } else {
    fit.memory +=
        count * size.layer() + size.embedding_in_memory + size.head_in_memory - size.shared;
    fit.residency.pinned.assign(static_cast<std::size_t>(count), true);
  }
  if (fit.memory <= spec.memory && fit.device_memory <= spec.device_memory)
    known->second = std::move(fit);
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

// Balanced: every host is done at the same time, which keeps all of them busy. Else the fastest
// hosts take what they can hold, which is best for one sequence.
std::optional<ClusterPlan> RingPlanner::all_in_memory(bool balanced) {
  const std::int64_t rows = step(false).rows;
  const auto counts = hand_out(1, [&](int rank, std::int64_t count) {
    if (!in_memory(rank, count)) return kNever;
    const double layer = step_work(rank, rows).seconds;
    return balanced ? static_cast<double>(count) * layer : layer;
  });
  if (!counts) return std::nullopt;
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
        fit->device ? static_cast<double>(fit->device->waited) / host(rank).device.bus : 0;
    return std::max(disk, bus) + static_cast<double>(count) * step_work(rank, rows).seconds;
  });
  if (!counts) return std::nullopt;
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
    plan.hosts.back().full =
        plan.in_passes ? fit->residency.streamed > 0 || (fit->device && fit->device->streamed > 0)
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
  plan.device = fit.device;
  plan.memory = fit.memory;
  plan.device_memory = fit.device_memory;
  plan.disk_seconds = static_cast<double>(residency.waited) / host(rank).rates.disk;
  if (fit.device)
    plan.bus_seconds = static_cast<double>(fit.device->waited) / host(rank).device.bus;
  plan.step_seconds = static_cast<double>(count * steps.count) * work.seconds +
                      (has_head(rank) ? head_seconds(steps.rows, in_passes) : 0);
  plan.step_bound = work.bound;
  plan.prefill_seconds = static_cast<double>(count * of_prompts.count * of_prompts.passes) *
                         prompt_work(rank, of_prompts.rows).seconds;
  plan.prefill_wait_seconds =
      static_cast<double>(residency.streamed * of_prompts.passes) / host(rank).rates.disk;
  // With a single slot a layer is not read while another is in use.
  if (residency.attention_slots == 1) plan.prefill_wait_seconds += plan.prefill_seconds;
  if (fit.device) {
    double bus =
        static_cast<double>(fit.device->streamed * of_prompts.passes) / host(rank).device.bus;
    if (fit.device->attention_slots == 1) bus += plan.prefill_seconds;
    plan.prefill_wait_seconds = std::max(plan.prefill_wait_seconds, bus);
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
  for (const Window& window : plan.stages.windows) {
    const std::int64_t count = window.end - window.begin;
    const Work layer =
        prompts ? prompt_work(window.rank, batches.rows) : step_work(window.rank, batches.rows);
    const double seconds = static_cast<double>(count) * layer.seconds;
    const bool gathers = plan.in_passes && count > 1;
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
