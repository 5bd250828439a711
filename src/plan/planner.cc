#include "plan/planner.h"

#include <algorithm>
#include <optional>

#include "base/byte_size.h"
#include "base/error.h"
#include "plan/ring_planner.h"

namespace stagecoach {
namespace {

// Of a GPU that holds whatever there is.
constexpr std::int64_t kRoomy = std::int64_t{1} << 50;
constexpr std::int64_t kMegabyte = 1'000'000;
// A host that saves less than this is not worth its risk.
constexpr double kWorthwhile = 0.99;

using Hosts = std::vector<std::size_t>;  // places in the cluster

Hosts without(const Hosts& hosts, std::size_t host) {
  Hosts rest;
  for (const std::size_t other : hosts)
    if (other != host) rest.push_back(other);
  return rest;
}

// The least that a rank between the first and the last needs for one layer.
std::int64_t smallest_rank(const PlanQuestion& question, bool on_device) {
  const auto other = [&](bool in_passes) {
    return question.other_memory({.layers = 1,
                                  .largest_window = 1,
                                  .head = false,
                                  .in_passes = in_passes,
                                  .frugal = true,
                                  .ranks = 2,
                                  .on_device = on_device});
  };
  const std::int64_t least = std::min(other(false), other(true));
  return on_device ? least : least + question.slice_sizes(false, false).layer();
}

// Which hosts take part.
class Choice {
 public:
  explicit Choice(const PlanQuestion& question) : question_(question), costs_(question) {
    for (std::size_t i = 0; i < question.cluster.hosts.size(); ++i) {
      const HostSpec& host = question.cluster.hosts[i];
      STAGECOACH_CHECK(host.memory > 0 && host.rates.complete());
      STAGECOACH_CHECK(!host.on_device() || host.device.complete());
      const std::int64_t smallest = smallest_rank(question, host.on_device());
      if (host.memory >= smallest)
        hosts_.push_back(i);
      else
        left_out_.push_back(
            {i, fmt::format("{} of memory cannot hold one layer and what a rank needs, {}",
                            format_bytes(host.memory), format_bytes(smallest))});
    }
  }

  ClusterPlan make() {
    const auto layers = static_cast<std::size_t>(question_.spec.num_hidden_layers);
    for (const std::size_t host : slowest_first())
      if (hosts_.size() > layers) leave_out(host, "there are more hosts than layers");
    able_ = hosts_;
    std::optional<ClusterPlan> best = plan(hosts_);
    while (!best && hosts_.size() > 1) best = drop_one_that_cannot();
    if (!best) throw too_small();
    while (hosts_.size() > 1 && drop_one_that_delays(*best)) {
    }
    best->left_out = std::move(left_out_);
    return *std::move(best);
  }

 private:
  std::optional<ClusterPlan> plan(const Hosts& hosts) const {
    if (hosts.empty()) return std::nullopt;
    return RingPlanner(question_, hosts).best();
  }

  void leave_out(std::size_t host, std::string reason) {
    hosts_ = without(hosts_, host);
    left_out_.push_back({host, std::move(reason)});
  }

  // What one layer costs on a host, with its weights in memory or on disk.
  double slowness(std::size_t host) const {
    return costs_.layer(host, costs_.step_rows(1)).seconds + costs_.layer_read_seconds(host);
  }
  Hosts slowest_first() const {
    Hosts hosts = hosts_;
    std::stable_sort(hosts.begin(), hosts.end(),
                     [this](std::size_t a, std::size_t b) { return slowness(a) > slowness(b); });
    return hosts;
  }

  // More hosts are more memory, but the first and the last need some for the ends of the model:
  // without one of them another has its place.
  std::optional<ClusterPlan> drop_one_that_cannot() {
    for (const std::size_t host : slowest_first())
      if (auto rest = plan(without(hosts_, host))) {
        leave_out(host, why_it_cannot(host));
        return rest;
      }
    const auto least =
        *std::min_element(hosts_.begin(), hosts_.end(), [this](std::size_t a, std::size_t b) {
          return question_.cluster.hosts[a].memory < question_.cluster.hosts[b].memory;
        });
    leave_out(least, why_it_cannot(least));
    return plan(hosts_);
  }
  std::string why_it_cannot(std::size_t host) const {
    if (fits_with_gpus(hosts_, {host}, kRoomy))
      return fmt::format("where it stands {} of its GPU's memory cannot hold its part of the model",
                         format_bytes(question_.cluster.hosts[host].device_memory));
    return "where it stands its memory cannot hold its end of the model";
  }

  // Whether they could if the GPUs of some had at least so much memory.
  bool fits_with_gpus(const Hosts& hosts, const Hosts& larger, std::int64_t memory) const {
    PlanQuestion question = question_;
    for (const std::size_t place : larger) {
      HostSpec& host = question.cluster.hosts[place];
      if (host.on_device()) host.device_memory = std::max(host.device_memory, memory);
    }
    return !hosts.empty() && RingPlanner(question, hosts).best().has_value();
  }

  // The slowest, where the job ends as soon or sooner without it.
  bool drop_one_that_delays(ClusterPlan& best) {
    const std::size_t host = slowest_first().front();
    auto rest = plan(without(hosts_, host));
    if (!rest) return false;
    const double with = best.job_seconds(question_), alone = rest->job_seconds(question_);
    if (with <= kWorthwhile * alone) return false;
    leave_out(host,
              fmt::format("the job takes {:.4g} s with it and {:.4g} s without", with, alone));
    best = *std::move(rest);
    return true;
  }

  // Null: larger GPUs would not help.
  std::optional<Error> gpus_too_small() const {
    std::vector<Hosts> choices{able_};
    for (const std::size_t host : able_) choices.push_back({host});
    const auto choice = std::ranges::find_if(
        choices, [this](const Hosts& hosts) { return fits_with_gpus(hosts, hosts, kRoomy); });
    if (choice == choices.end()) return std::nullopt;
    std::int64_t too_little = 0, enough = kRoomy / kMegabyte;
    while (enough - too_little > 1) {
      const std::int64_t middle = (too_little + enough) / 2;
      (fits_with_gpus(*choice, *choice, middle * kMegabyte) ? enough : too_little) = middle;
    }
    std::string small;
    for (const std::size_t place : *choice) {
      const HostSpec& host = question_.cluster.hosts[place];
      if (host.on_device() && host.device_memory < enough * kMegabyte)
        small += fmt::format("{}{} has {}", small.empty() ? "" : ", ", host.name,
                             format_bytes(host.device_memory));
    }
    return resource_error(
        fmt::format("device_memory is too small for the model: {}; expected at least {}, for one "
                    "layer, what stands there of the model's ends, and what is not weights",
                    small, format_bytes(enough * kMegabyte)),
        fmt::format("device_memory = \"{}MB\", a smaller --micro-batch, or leave device_memory "
                    "out: then the processor computes",
                    enough));
  }

  Error too_small() const {
    if (auto error = gpus_too_small()) return *std::move(error);
    double memory = 0;
    for (const HostSpec& host : question_.cluster.hosts) memory += static_cast<double>(host.memory);
    return resource_error(
        fmt::format("{} hosts cannot hold the model: they have {:.3g} GB of memory altogether, and "
                    "each rank needs {} for one layer and what is not weights, the first and the "
                    "last one more for the ends of the model",
                    question_.cluster.hosts.size(), memory * 1e-9,
                    format_bytes(smallest_rank(question_, false))),
        "more memory = in [nodes], fewer --sequences, a smaller --micro-batch, or weights of fewer "
        "bits");
  }

  const PlanQuestion& question_;
  const CostModel costs_;
  Hosts hosts_;  // in ring order
  Hosts able_;   // those that were tried first
  std::vector<LeftOut> left_out_;
};

}  // namespace

std::int64_t HostPlan::layers_on_device() const {
  return device ? std::count(device->pinned.begin(), device->pinned.end(), true) : 0;
}

std::int64_t HostPlan::layers_in_memory() const {
  return std::count(residency.pinned.begin(), residency.pinned.end(), true) + layers_on_cpu();
}

std::int64_t HostPlan::layers_on_cpu() const {
  return std::count(on_cpu.begin(), on_cpu.end(), true);
}

double ClusterPlan::job_seconds(const PlanQuestion& question) const {
  return time_to_first_token + static_cast<double>(question.new_tokens) * step_seconds;
}

ClusterPlan plan_cluster(const PlanQuestion& question) {
  STAGECOACH_CHECK(!question.cluster.hosts.empty());
  return Choice(question).make();
}

}  // namespace stagecoach
