#include "app/job_plan.h"

#include <algorithm>
#include <exception>
#include <utility>
#include <vector>

#include "app/slice_sizes.h"
#include "base/archive.h"
#include "base/byte_size.h"
#include "base/error.h"
#include "base/log.h"
#include "base/machine_limits.h"
#include "plan/device_residency.h"
#include "stager/layer_stager.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kShapeMagic = archive_magic("SHAP");
constexpr std::uint32_t kOfferMagic = archive_magic("OFFR");
constexpr std::uint32_t kChoiceMagic = archive_magic("CHOI");
// Where `stagecoach probe` has not run: an ordinary SSD, and a hop between two PCs.
constexpr double kAssumedDisk = 1e9;    // bytes per second
constexpr double kAssumedHop = 200e-6;  // seconds
// Of the memory that a host has free, without --memory.
constexpr double kShareOfFree = 0.85;
constexpr double kShareOfDevice = 0.9;  // likewise, without --device-memory
constexpr double kAssumedBus = 12e9;    // bytes per second to a device: PCIe 3 with 16 lanes

// What a rank says of itself.
struct Offer {
  bool fits = true;  // its slice, with one window or those that the user names
  // For each candidate number of rounds, seconds that a pass waits for its disk; -1: it does not
  // fit, or the store lacks layers of such windows.
  std::vector<double> waits;
  double hop = 0;  // seconds to the next rank
  // Rows of a micro-batch that it would like.
  std::int64_t micro_batch = 0;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(fits, waits, hop, micro_batch);
  }
};

// What rank 0 makes of the offers.
struct Choice {
  std::int32_t rounds = 1;
  bool in_passes = false;
  std::int64_t micro_batch = 0;

  template <class Archive>
  void serialize(Archive& archive) {
    archive(rounds, in_passes, micro_batch);
  }
};

template <typename T>
T broadcast(ControlChannel& control, std::uint32_t magic, const T& value, const char* what) {
  if (control.rank() > 0) return from_archive<T>(magic, control.receive_from(0), what);
  for (int rank = 1; rank < control.size(); ++rank) control.send(rank, to_archive(magic, value));
  return value;
}

// This rank's part of the negotiation.
class Planner {
 public:
  Planner(const PlanRequest& request, ControlChannel& control)
      : request_(request),
        control_(control),
        spec_(request.store.manifest().spec),
        weights_(request.store.manifest().weights),
        shape_(request.shape),
        micro_batch_(request.settings.micro_batch > 0 ? request.settings.micro_batch
                                                      : kUsualMicroBatch) {}

  // Throws usage_error for a budget that is no size.
  void find_budget() {
    const int here = launched_local_size();
    const std::string host = control_.transport().host(control_.rank());
    budget_ = memory_budget({.flag = request_.settings.memory,
                             .job_file = request_.settings.job,
                             .host = host,
                             .ranks_here = here});
    given_ = budget_.has_value();
    if (request_.device != nullptr) {
      device_budget_ =
          memory_budget({.flag = request_.settings.device_memory,
                         .job_file = request_.settings.job,
                         .host = host,
                         .ranks_here = request_.device->sharers(),
                         .of_node = &HostSpec::device_memory})
              .value_or(static_cast<std::int64_t>(
                  kShareOfDevice * static_cast<double>(request_.device->free_bytes())));
    }
    if (!given_)
      budget_ = resident_bytes() + static_cast<std::int64_t>(
                                       kShareOfFree * static_cast<double>(available_bytes(here)));
  }

  // Another spelling of a host's name would leave it without its budget.
  void warn_of_unknown_nodes() const {
    if (request_.settings.job.empty()) return;
    for (const HostSpec& node : job_cluster(request_.settings.job).hosts) {
      bool known = false;
      for (int rank = 0; rank < control_.size(); ++rank)
        known = known || control_.transport().host(rank) == node.name;
      if (!known)
        spdlog::warn("{}: [nodes] names '{}', where no rank runs; ranks are on {}",
                     request_.settings.job, node.name, hosts());
    }
  }

  void hear_shape() { shape_ = broadcast(control_, kShapeMagic, shape_, "the job's size"); }

  Offer offer() const {
    Offer offer;
    const int rounds = request_.settings.rounds_per_rank().value_or(1);
    offer.fits = fits_in_memory(stages(rounds), false);
    const double disk = cached_disk_rate(request_.store.root()).value_or(kAssumedDisk);
    const double bus = request_.device == nullptr
                           ? kAssumedBus
                           : cached_bus_rate(request_.device->device_label()).value_or(kAssumedBus);
    const int next = (control_.rank() + 1) % control_.size();
    offer.hop = cached_network_latency(control_.transport().host(next)).value_or(kAssumedHop);
    for (const int k : candidates()) {
      const StagePlan plan = stages(k);
      NeedsRequest sizes = needs_request(plan, true);
      auto placement = placement_of(plan, memory_needs(sizes));
      sizes.frugal = true;
      if (!placement) placement = placement_of(plan, memory_needs(sizes));
      offer.waits.push_back(placement && holds_layers(plan) ? placement->wait_seconds(disk, bus)
                                                            : -1);
    }
    offer.micro_batch = wanted_micro_batch();
    return offer;
  }

  Choice choose(const std::vector<Offer>& offers) const {
    const bool fits =
        std::all_of(offers.begin(), offers.end(), [](const Offer& offer) { return offer.fits; });
    const bool keeps = request_.settings.keeps_passes();
    Choice choice;
    choice.in_passes = !fits || keeps;
    choice.micro_batch =
        std::min_element(offers.begin(), offers.end(), [](const Offer& a, const Offer& b) {
          return a.micro_batch < b.micro_batch;
        })->micro_batch;
    if (!auto_rounds() || !choice.in_passes) {
      choice.rounds = request_.settings.rounds_per_rank().value_or(1);
      return choice;
    }
    const std::vector<int> all = candidates();
    // Passes of several micro-batches keep all ranks busy with windows of one layer; a checkpoint
    // then has a file for every layer.
    const bool finest = !one_micro_batch() || keeps;
    double best = -1;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const double seconds = step_seconds(offers, i, all[i]);
      if (seconds < 0 || (best >= 0 && !finest && seconds >= best)) continue;
      best = seconds;
      choice.rounds = all[i];
    }
    return choice;
  }

  JobPlan carry_out(const Choice& choice) {
    JobPlan plan;
    plan.stages = stages(choice.rounds);
    plan.shape = shape_;
    plan.in_passes = choice.in_passes;
    if (choice.micro_batch > 0) micro_batch_ = choice.micro_batch;  // 0: some rank ends the job
    plan.micro_batch = micro_batch_;
    const int rank = control_.rank();
    NeedsRequest sizes = needs_request(plan.stages, choice.in_passes);
    sizes.frugal = !placement_of(plan.stages, memory_needs(sizes));
    plan.needs = memory_needs(sizes);
    plan.batch_rows = largest_batch(sizes);
    plan.head_rows = head_rows(sizes);
    if (request_.device == nullptr && (!choice.in_passes || fits_in_memory(plan.stages, true))) {
      plan.staging = all_in_memory({.layers = plan.stages.layers_of(rank),
                                    .embedding = has_embedding(plan.stages),
                                    .head = has_head(plan.stages)});
      return plan;
    }
    const auto placement = placement_of(plan.stages, plan.needs);
    if (!placement) throw too_small(plan);
    plan.staging = staging_of(plan.stages, *placement);
    log(plan, *placement);
    return plan;
  }

 private:
  std::string hosts() const {
    std::string text;
    for (int rank = 0; rank < control_.size(); ++rank)
      text += (rank == 0 ? "" : ", ") + control_.transport().host(rank);
    return text;
  }
  bool auto_rounds() const {
    return request_.settings.windows.empty() && !request_.settings.rounds_per_rank();
  }
  bool one_micro_batch() const {
    return shape_.usual_pass <= std::min(kOneMicroBatch, micro_batch_);
  }
  // Of each rank, as choices of rounds: just one where the user has chosen.
  std::vector<int> candidates() const {
    if (!auto_rounds()) return {request_.settings.rounds_per_rank().value_or(1)};
    return candidate_rounds(request_.layer_end - request_.layer_begin, control_.size());
  }
  // A device likes large micro-batches, as long as no more of its weights have to stream for them.
  std::int64_t wanted_micro_batch() const {
    if (request_.settings.micro_batch > 0 || request_.device == nullptr) return micro_batch_;
    const auto streams_no_more = [&](std::int64_t rows) {
      bool fits = false;
      for (const int rounds : candidates()) {
        const StagePlan plan = stages(rounds);
        NeedsRequest sizes = needs_request(plan, true);
        const auto usual = placement_of(plan, memory_needs(sizes));
        if (!usual) continue;
        fits = true;
        sizes.micro_batch = rows;
        const auto found = placement_of(plan, memory_needs(sizes));
        if (!found || found->device->streamed > usual->device->streamed ||
            found->host.streamed > usual->host.streamed)
          return false;
      }
      return fits;
    };
    for (std::int64_t rows = kDeviceMicroBatch; rows > micro_batch_; rows /= 2)
      if (streams_no_more(rows)) return rows;
    return micro_batch_;
  }
  // A pass of one micro-batch: disks work beside each other, hops follow one another.
  double step_seconds(const std::vector<Offer>& offers, std::size_t candidate, int rounds) const {
    double wait = 0, hops = 0;
    for (const Offer& offer : offers) {
      if (offer.waits[candidate] < 0) return -1;
      wait = std::max(wait, offer.waits[candidate]);
      hops += offer.hop;
    }
    return wait + rounds * hops;
  }

  StagePlan stages(int rounds) const;
  bool has_embedding(const StagePlan& plan) const {
    return request_.layer_begin == 0 && control_.rank() == plan.windows.front().rank;
  }
  bool has_head(const StagePlan& plan) const {
    return request_.layer_end == spec_.num_hidden_layers && control_.rank() == plan.last_rank();
  }
  // A host may have imported a slice only.
  bool holds_layers(const StagePlan& plan) const {
    for (const auto& [begin, end] : plan.layers_of(control_.rank()))
      if (!request_.store.manifest().has_layers(begin, end)) return false;
    return true;
  }
  std::int64_t layers_here(const StagePlan& plan) const {
    std::int64_t layers = 0;
    for (const auto& [begin, end] : plan.layers_of(control_.rank())) layers += end - begin;
    return layers;
  }
  // How often a usual pass goes through a head on disk.
  std::int64_t head_sweeps(const StagePlan& plan) const {
    const std::int64_t at_once = head_rows(needs_request(plan, true));
    return std::max<std::int64_t>(1, (shape_.wanted_rows + at_once - 1) / at_once);
  }
  NeedsRequest needs_request(const StagePlan& plan, bool in_passes) const {
    return {.spec = spec_,
            .shape = shape_,
            .kv_type = request_.settings.kv_type(),
            .micro_batch = micro_batch_,
            .layers = layers_here(plan),
            .largest_window = plan.largest_window(),
            .head = has_head(plan),
            .in_passes = in_passes,
            .packing = request_.packing,
            .threads = request_.threads,
            .ranks = control_.size(),
            .on_device = request_.device != nullptr};
  }
  // Where the weights of this rank's slice are.
  struct Placement {
    Residency host;
    std::optional<Residency> device;  // if it has memory of its own

    // What a pass waits for: disk and bus work beside each other.
    double wait_seconds(double disk, double bus) const {
      const double host_wait = static_cast<double>(host.waited) / disk;
      return device ? std::max(host_wait, static_cast<double>(device->waited) / bus) : host_wait;
    }
    bool streams() const { return host.streamed > 0 || (device && device->streamed > 0); }
  };
  WeightSizes weight_sizes(const StagePlan& plan) const;
  ResidencyRequest residency_request(const StagePlan& plan, std::int64_t memory) const;
  std::optional<Placement> placement_of(const StagePlan& plan, const MemoryNeeds& needs) const {
    const ResidencyRequest slice = residency_request(plan, *budget_ - needs.total());
    Placement placement;
    if (request_.device != nullptr) {
      placement.device = plan_device(slice, *device_budget_ - needs.device);
      if (!placement.device) return std::nullopt;
    }
    const auto host = placement.device ? plan_host(beside_device(slice, *placement.device))
                                       : plan_residency(slice);
    if (!host) return std::nullopt;
    placement.host = *host;
    return placement;
  }
  bool fits_in_memory(const StagePlan& plan, bool in_passes) const;
  StagingPlan staging_of(const StagePlan& plan, const Placement& placement) const;
  Error too_small(const JobPlan& plan) const;
  Error device_too_small(const JobPlan& plan, std::int64_t least) const;
  void log(const JobPlan& plan, const Placement& placement) const;

  const PlanRequest& request_;
  ControlChannel& control_;
  const ModelSpec& spec_;
  const DType weights_;
  JobShape shape_;
  std::int64_t micro_batch_;
  std::optional<std::int64_t> budget_, device_budget_;
  bool given_ = false;
};

StagePlan Planner::stages(int rounds) const {
  const std::int64_t begin = request_.layer_begin, end = request_.layer_end;
  const RunSettings& settings = request_.settings;
  if (!settings.windows.empty()) {
    StagePlan plan = explicit_plan(settings.windows, begin, end, control_.size());
    const auto wanted = settings.rounds_per_rank();
    const auto found = static_cast<std::int64_t>(plan.windows.size());
    const std::int64_t ranks = control_.size();
    if (wanted && *wanted != (found + ranks - 1) / ranks)  // the last round may be cut short
      throw usage_error(
          fmt::format("--windows {} has {} windows, --rounds {} on {} ranks expects {}",
                      settings.windows, found, *wanted, ranks, *wanted * ranks));
    return plan;
  }
  PlanCosts costs{.layer_bytes = slab_weight_bytes(spec_, SlabKind::kLayer, weights_)};
  const std::int64_t embedding = slab_weight_bytes(spec_, SlabKind::kEmbedding, weights_);
  if (begin == 0) costs.embedding_bytes = embedding;
  if (end == spec_.num_hidden_layers)
    costs.head_bytes =
        slab_weight_bytes(spec_, SlabKind::kHead, weights_) + (spec_.tied_head ? embedding : 0);
  // With rounds, the ends are a small part of a rank's work, and far more than a window's.
  if (rounds > 1) costs = {.layer_bytes = costs.layer_bytes};
  return balanced_plan(costs, begin, end, control_.size(), rounds);
}

WeightSizes Planner::weight_sizes(const StagePlan& plan) const {
  return slice_sizes(spec_, weights_, {.embedding = has_embedding(plan), .head = has_head(plan)});
}

ResidencyRequest Planner::residency_request(const StagePlan& plan, std::int64_t memory) const {
  ResidencyRequest request{.sizes = weight_sizes(plan),
                           .windows = {},
                           .ranks = control_.size(),
                           .memory = memory,
                           .head_sweeps = head_sweeps(plan),
                           .one_micro_batch = one_micro_batch()};
  for (const auto& [begin, end] : plan.layers_of(control_.rank()))
    request.windows.push_back(end - begin);
  return request;
}

// Without a budget, layers that share a slab share its memory (create --distinct-layers).
bool Planner::fits_in_memory(const StagePlan& plan, bool in_passes) const {
  if (request_.device != nullptr) {
    const auto placement = placement_of(plan, memory_needs(needs_request(plan, in_passes)));
    return placement && !placement->streams();
  }
  const WeightSizes sizes = weight_sizes(plan);
  std::int64_t layers = layers_here(plan);
  if (!given_) layers = std::min(layers, request_.store.manifest().distinct_layers);
  return memory_needs(needs_request(plan, in_passes)).total() + layers * sizes.layer() +
             sizes.embedding_in_memory + sizes.head_in_memory - sizes.shared <=
         *budget_;
}

StagingPlan Planner::staging_of(const StagePlan& plan, const Placement& placement) const {
  const Residency& residency = placement.host;
  StagingPlan staging;
  std::size_t i = 0, on_host = 0;
  for (const auto& [begin, end] : plan.layers_of(control_.rank()))
    for (std::int64_t layer = begin; layer < end; ++layer, ++i) {
      const bool on_device = placement.device && placement.device->pinned[i];
      staging.layers.push_back({.layer = layer,
                                .pinned = !on_device && residency.pinned[on_host],
                                .on_device = on_device});
      if (!on_device) ++on_host;
    }
  staging.attention_slots = residency.attention_slots;
  staging.mlp_slots = residency.mlp_slots;
  if (placement.device)
    staging.device = {.attention_slots = placement.device->attention_slots,
                      .mlp_slots = placement.device->mlp_slots,
                      .head = placement.device->head_in_memory};
  const auto residence = [](bool present, bool in_memory) {
    return !present ? Residence::kAbsent : in_memory ? Residence::kMemory : Residence::kDisk;
  };
  staging.embedding = residence(has_embedding(plan), residency.embedding_in_memory);
  const bool through = placement.device && placement.device->head_in_memory;
  staging.head = residence(has_head(plan), residency.head_in_memory && !through);
  return staging;
}

Error Planner::device_too_small(const JobPlan& plan, std::int64_t least) const {
  return resource_error(
      fmt::format("{} of device memory cannot hold {}: {} are for activations, keys and values and "
                  "logits, and {} for the least of weights, one layer and the ends of the model",
                  format_bytes(*device_budget_), plan.stages.describe(control_.rank()),
                  format_bytes(plan.needs.device), format_bytes(least)),
      fmt::format("--device-memory {}MB, a smaller --micro-batch, or --device cpu",
                  (plan.needs.device + least) / 1'000'000 + 1));
}

Error Planner::too_small(const JobPlan& plan) const {
  ResidencyRequest request = residency_request(plan.stages, 0);
  if (request_.device != nullptr) {
    const auto device = plan_device(request, *device_budget_ - plan.needs.device);
    if (!device) return device_too_small(plan, smallest_device_memory(request));
    request = beside_device(request, *device);
  }
  const std::int64_t smallest = plan.needs.total() + smallest_memory(request);
  return resource_error(
      fmt::format("{} of memory cannot hold {}: {}; and weights of at least {}, one layer (its "
                  "largest part, the {}, has {}) and the ends of the model",
                  format_bytes(*budget_), plan.stages.describe(control_.rank()),
                  plan.needs.describe(), format_bytes(smallest_memory(request)),
                  request.sizes.mlp >= request.sizes.attention ? "mlp" : "attention",
                  format_bytes(std::max(request.sizes.mlp, request.sizes.attention))),
      // A little more than the least: the process grows while it is being said.
      fmt::format("{}--memory {}MB, or a smaller --micro-batch{}",
                  given_ ? "" : "free some memory: ", smallest / 1'000'000 + 8,
                  control_.rank() == 0 && shape_.sequences > 1 ? " or --max-sequences" : ""));
}

void Planner::log(const JobPlan& plan, const Placement& placement) const {
  const Residency& residency = placement.host;
  if (placement.device) {
    const auto held =
        std::count(placement.device->pinned.begin(), placement.device->pinned.end(), true);
    spdlog::log(control_.rank() > 0 ? spdlog::level::debug : spdlog::level::info,
                "{}: {} of {} layers on the device, {} a pass copied to it, {} of {} used",
                plan.stages.describe(control_.rank()), held, placement.device->pinned.size(),
                format_bytes(placement.device->streamed),
                format_bytes(plan.needs.device + placement.device->memory),
                format_bytes(*device_budget_));
    if (residency.pinned.empty()) return;
  }
  const auto pinned = std::count(residency.pinned.begin(), residency.pinned.end(), true);
  const std::string text =
      fmt::format("{}: {} of {} layers in memory, {} a pass from disk, {} windows, {} of {} used",
                  plan.stages.describe(control_.rank()), pinned, residency.pinned.size(),
                  format_bytes(residency.streamed), plan.stages.windows.size(),
                  format_bytes(plan.needs.total() + residency.memory), format_bytes(*budget_));
  if (control_.rank() > 0 || residency.streamed == 0) {
    spdlog::debug("{}", text);
    return;
  }
  if (!given_)
    spdlog::info(
        "the model does not fit in free memory: it streams from disk (--memory says how much to "
        "use)");
  spdlog::info("{}", text);
}

}  // namespace

JobPlan negotiate_plan(const PlanRequest& request, ControlChannel& control) {
  Planner planner(request, control);
  planner.hear_shape();
  Offer mine;
  std::exception_ptr failure;
  try {
    planner.find_budget();
    mine = planner.offer();
  } catch (const Error&) {
    failure = std::current_exception();
  }
  Choice choice;
  if (control.rank() == 0) {
    std::vector<Offer> offers{mine};
    for (int rank = 1; rank < control.size(); ++rank)
      offers.push_back(from_archive<Offer>(kOfferMagic, control.receive_from(rank), "an offer"));
    bool complete = failure == nullptr;
    for (const Offer& offer : offers)
      complete = complete && offer.waits.size() == offers.front().waits.size();
    if (complete) choice = planner.choose(offers);
    planner.warn_of_unknown_nodes();
  } else {
    control.send(0, to_archive(kOfferMagic, mine));
  }
  choice = broadcast(control, kChoiceMagic, choice, "the choice of a plan");
  if (failure) std::rethrow_exception(failure);
  return planner.carry_out(choice);
}

}  // namespace stagecoach
