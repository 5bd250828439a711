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
#include "engine/kv_cache.h"
#include "plan/cost_model.h"
#include "plan/cpu_layers.h"
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
// Of a device that has not been measured: an ordinary card on PCIe 3 with 16 lanes.
constexpr DeviceRates kAssumedDevice{.memory = 300e9, .halves = 20e12, .bus = 12e9};

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

  // Throws usage_error for layers that no rank has, or none with a device.
  void check_cpu_layers() const {
    const std::int64_t wanted = wanted_cpu_layers().value_or(0);
    if (wanted == 0) return;
    if (request_.device == nullptr)
      throw usage_error(fmt::format("--cpu-layers {} needs a GPU for the other layers: this rank "
                                    "computes on the CPU alone",
                                    wanted),
                        "--device cuda, or --cpu-layers auto");
    for (const int k : candidates()) {
      const StagePlan plan = stages(k);
      if (wanted > layers_here(plan))
        throw usage_error(fmt::format("--cpu-layers {}: expected at most {}, for {}", wanted,
                                      layers_here(plan), plan.describe(control_.rank())),
                          "--cpu-layers auto");
    }
  }

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

  // What layers cost on the device and on the processor.
  void know_costs();

  // A device that nobody has asked for by name may be too small for the least of a slice.
  void settle_device() {
    if (request_.device == nullptr || !request_.device_optional || device_serves()) return;
    JobPlan plan;
    plan.stages = stages(candidates().front());
    plan.needs = memory_needs(needs_request(plan.stages, true, 0));
    spdlog::warn("computing on the CPU: {}", device_too_small(plan).what());
    request_.device = nullptr;
    request_.packing = request_.cpu_packing;
    without_device_ = true;
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

  Offer offer() {
    Offer offer;
    const Streaming usual = streaming();
    offer.fits = usual.in_memory;
    const double disk = cached_disk_rate(request_.store.root()).value_or(kAssumedDisk);
    const int next = (control_.rank() + 1) % control_.size();
    offer.hop = cached_network_latency(control_.transport().host(next)).value_or(kAssumedHop);
    const std::vector<int> rounds = candidates();
    for (std::size_t i = 0; i < rounds.size(); ++i) {
      const std::optional<Placement>& placement = usual.in_passes[i];
      offer.waits.push_back(
          placement && holds_layers(stages(rounds[i])) ? wait_seconds(*placement, disk) : -1);
    }
    offer.micro_batch = wanted_micro_batch(usual);
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
    if (choice.micro_batch > 0) set_micro_batch(choice.micro_batch);  // 0: some rank ends the job
    plan.micro_batch = micro_batch_;
    plan.without_device = without_device_;
    const int rank = control_.rank();
    const bool in_memory = !choice.in_passes && request_.device != nullptr;
    auto placement =
        placement_of(plan.stages, {.in_passes = choice.in_passes, .in_memory = in_memory});
    NeedsRequest sizes = needs_request(plan.stages, choice.in_passes, cpu_layers_of(placement));
    if (!placement) {
      sizes.frugal = true;
      placement = placement_of(
          plan.stages, {.in_passes = choice.in_passes, .frugal = true, .in_memory = in_memory});
      sizes.cpu_layers = cpu_layers_of(placement);
    }
    plan.needs = memory_needs(sizes);
    plan.batch_rows = largest_batch(sizes);
    plan.head_rows = head_rows(sizes);
    plan.waiting_on_device = waiting_on_device(sizes);
    if (request_.device == nullptr && (!choice.in_passes || fits_in_memory(plan.stages, true))) {
      plan.staging = all_in_memory({.layers = plan.stages.layers_of(rank),
                                    .embedding = has_embedding(plan.stages),
                                    .head = has_head(plan.stages)});
      return plan;
    }
    if (!placement) throw too_small(plan);
    check_device_has(plan, *placement);
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
  NeedsRequest needs_request(const StagePlan& plan, bool in_passes, std::int64_t cpu_layers) const {
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
            .on_device = request_.device != nullptr,
            .device_messages = request_.device_messages,
            .cpu_layers = cpu_layers,
            .cpu_packing = request_.cpu_packing};
  }
  // nullopt: auto.
  std::optional<std::int64_t> wanted_cpu_layers() const {
    return parse_cpu_layers(request_.settings.cpu_layers);
  }
  // Where the weights of this rank's slice are.
  struct Placement {
    Residency host;
    std::optional<DeviceSplit> split;  // with a device that has memory of its own

    bool streams() const { return split ? split->streams() : host.streamed > 0; }
    std::int64_t host_memory() const { return split ? split->host_memory : host.memory; }
  };
  struct PlacementRequest {
    bool in_passes = false, frugal = false;
    bool in_memory = false;  // nothing streams
  };
  NeedsRequest needs_request(const StagePlan& plan, const PlacementRequest& wanted,
                             std::int64_t cpu_layers) const {
    NeedsRequest sizes = needs_request(plan, wanted.in_passes, cpu_layers);
    sizes.frugal = wanted.frugal;
    return sizes;
  }
  // With such a placement, or where there is none.
  std::int64_t cpu_layers_of(const std::optional<Placement>& placement) const {
    if (!placement) return wanted_cpu_layers().value_or(0);
    return placement->split ? placement->split->cpu_layers() : 0;
  }
  // What a usual pass waits for: disk and bus work beside each other, and beside the processor.
  double wait_seconds(const Placement& placement, double disk) const {
    if (!placement.split) return static_cast<double>(placement.host.waited) / disk;
    PassCost cost = step_cost_;
    cost.device_layer = 0;
    return pass_seconds(*placement.split, cost, {.bus = device_rates().bus, .disk = disk});
  }
  std::optional<DeviceSplit> split_of(const StagePlan& plan, const PlacementRequest& wanted,
                                      std::int64_t cpu_layers) const;
  std::optional<DeviceSplit> chosen_split(const StagePlan& plan,
                                          const PlacementRequest& wanted) const;
  bool device_serves() const;
  // As `probe` has found them, or assumed.
  DeviceRates device_rates() const;
  WeightSizes weight_sizes(const StagePlan& plan) const;
  ResidencyRequest residency_request(const StagePlan& plan, const PlacementRequest& wanted,
                                     std::int64_t memory) const;
  std::optional<Placement> placement_of(const StagePlan& plan,
                                        const PlacementRequest& wanted) const {
    if (request_.device != nullptr) {
      auto split = chosen_split(plan, wanted);
      if (!split) return std::nullopt;
      return Placement{.host = split->host, .split = std::move(split)};
    }
    const MemoryNeeds needs = memory_needs(needs_request(plan, wanted, 0));
    const auto host = plan_residency(residency_request(plan, wanted, *budget_ - needs.total()));
    if (!host) return std::nullopt;
    return Placement{.host = *host, .split = std::nullopt};
  }
  // With micro-batches of micro_batch_ rows: whether nothing streams, and for each choice of rounds
  // what does in passes, if they fit.
  struct Streaming {
    bool in_memory = false;
    std::vector<std::optional<Placement>> in_passes;
  };
  Streaming streaming() const {
    const int rounds = request_.settings.rounds_per_rank().value_or(1);
    Streaming found{.in_memory = fits_in_memory(stages(rounds), false), .in_passes = {}};
    for (const int k : candidates()) found.in_passes.push_back(in_passes(stages(k)));
    return found;
  }
  std::optional<Placement> in_passes(const StagePlan& plan) const {
    auto placement = placement_of(plan, {.in_passes = true});
    return placement ? placement : placement_of(plan, {.in_passes = true, .frugal = true});
  }
  void set_micro_batch(std::int64_t rows) {
    if (std::exchange(micro_batch_, rows) != rows) know_costs();
  }
  std::int64_t wanted_micro_batch(const Streaming& least);
  bool fits_in_memory(const StagePlan& plan, bool in_passes) const;
  StagingPlan staging_of(const StagePlan& plan, const Placement& placement) const;
  Error too_small(const JobPlan& plan) const;
  std::int64_t least_device_weights(const JobPlan& plan) const;
  Error device_too_small(const JobPlan& plan) const;
  void check_device_has(const JobPlan& plan, const Placement& placement) const;
  void log(const JobPlan& plan, const Placement& placement) const;

  PlanRequest request_;
  ControlChannel& control_;
  const ModelSpec& spec_;
  const DType weights_;
  JobShape shape_;
  std::int64_t micro_batch_;
  std::optional<std::int64_t> budget_, device_budget_;
  bool given_ = false;
  bool without_device_ = false;
  // Of a device: of the prompts' passes and of the steps, where this host's rates are known.
  std::vector<PassCost> costs_;
  PassCost step_cost_;
};

DeviceRates Planner::device_rates() const {
  const std::optional<MachineLimits> limits = cached_limits();
  const DeviceLimit* const measured =
      limits ? limits->device(request_.device->device_label()) : nullptr;
  return measured != nullptr ? stagecoach::device_rates({*measured}).or_else(kAssumedDevice)
                             : kAssumedDevice;
}

// `probe` has measured the host, or nothing is known: then the device computes everything.
void Planner::know_costs() {
  costs_.clear();
  const std::optional<MachineLimits> limits = cached_limits();
  if (request_.device == nullptr || !limits) return;
  PlanQuestion question(spec_);
  question.layer_bytes = slice_sizes(spec_, weights_, {}).layer();
  question.kv_bytes = KvCache::page_bytes(spec_, request_.settings.kv_type()) / kKvPageTokens;
  question.arithmetic = request_.cpu_packing == InputType::kInt8   ? Arithmetic::kInt8
                        : request_.cpu_packing == InputType::kBF16 ? Arithmetic::kBF16
                                                                   : Arithmetic::kF32;
  HostSpec here;
  here.device_memory = std::max<std::int64_t>(1, *device_budget_);
  here.device = device_rates();
  here.rates = {.memory = limits->memory.of(request_.threads),
                .f32 = limits->f32.rate.of(request_.threads),
                .bf16 = limits->bf16.rate.of(request_.threads),
                .int8 = limits->int8.rate.of(request_.threads)};
  question.cluster.hosts = {here};
  const CostModel model(question);
  // Of passes of so many rows, each another sequence's or the next of a prompt.
  const auto cost_of = [&](double passes, std::int64_t rows, std::int64_t context, bool decode) {
    const std::int64_t batch = std::min(rows, micro_batch_);
    const std::int64_t batches = (rows + batch - 1) / batch;
    const std::int64_t each = (rows + batches - 1) / batches;
    const CostModel::LayerRows of_batch{
        .rows = each, .sequences = decode ? each : 1, .context = context};
    const auto times = static_cast<double>(batches);
    return PassCost{.passes = passes,
                    .device_layer = times * model.layer(0, of_batch).seconds,
                    .cpu_layer = times * model.cpu_layer(0, of_batch, false).seconds,
                    .cpu_layer_beside_copies = times * model.cpu_layer(0, of_batch, true).seconds,
                    .crossing = times * model.crossing(0, each),
                    .one_micro_batch = rows <= std::min(kOneMicroBatch, micro_batch_)};
  };
  const std::int64_t largest = std::max<std::int64_t>(1, shape_.largest_pass);
  if (shape_.prompt_rows > 0) {
    const std::int64_t passes = (shape_.prompt_rows + largest - 1) / largest;
    costs_.push_back(cost_of(static_cast<double>(passes),
                             (shape_.prompt_rows + passes - 1) / passes, shape_.positions / 2 + 1,
                             false));
  }
  if (shape_.steps > 0)
    costs_.push_back(
        cost_of(static_cast<double>(shape_.steps), shape_.sequences, shape_.positions, true));
  step_cost_ =
      cost_of(1, shape_.usual_pass, shape_.positions, shape_.usual_pass <= shape_.sequences);
}

std::optional<DeviceSplit> Planner::split_of(const StagePlan& plan, const PlacementRequest& wanted,
                                             std::int64_t cpu_layers) const {
  const MemoryNeeds needs = memory_needs(needs_request(plan, wanted, cpu_layers));
  return plan_split(residency_request(plan, wanted, *budget_ - needs.total()),
                    *device_budget_ - needs.device, cpu_layers);
}

std::optional<DeviceSplit> Planner::chosen_split(const StagePlan& plan,
                                                 const PlacementRequest& wanted) const {
  const auto with = [&](std::int64_t layers) {
    auto split = split_of(plan, wanted, layers);
    return wanted.in_memory && split && split->streams() ? std::nullopt : split;
  };
  if (const auto layers = wanted_cpu_layers()) return with(*layers);
  // What a checkpoint keeps fits one split only, and what is free may have changed when it is read.
  if (request_.settings.keeps_passes()) return with(0);
  const double disk = cached_disk_rate(request_.store.root()).value_or(kAssumedDisk);
  std::int64_t most = costs_.empty() ? 0 : layers_here(plan);
  if (const auto alone = split_of(plan, wanted, 0))
    most = std::min<std::int64_t>(most, std::ranges::count(alone->device.pinned, false));
  return best_split(with, most, costs_, {.bus = device_rates().bus, .disk = disk});
}

// A device likes large micro-batches, as long as no more of its weights have to stream for them.
// What a checkpoint keeps fits one size only, and what is free may have changed when it is read.
std::int64_t Planner::wanted_micro_batch(const Streaming& least) {
  const std::int64_t usual = micro_batch_;
  if (request_.settings.micro_batch > 0 || request_.device == nullptr ||
      request_.settings.keeps_passes())
    return usual;
  const auto streams_more = [](const Placement& one, const Placement& other) {
    return one.split->device.streamed > other.split->device.streamed ||
           one.split->cpu_layers() > other.split->cpu_layers() ||
           one.host.streamed > other.host.streamed;
  };
  const auto good = [&](const Streaming& now) {
    if (least.in_memory && !now.in_memory) return false;
    bool any = least.in_memory;
    for (std::size_t i = 0; i < now.in_passes.size(); ++i) {
      const std::optional<Placement>& before = least.in_passes[i];
      if (!before) continue;
      any = true;
      if (!now.in_passes[i] || streams_more(*now.in_passes[i], *before)) return false;
    }
    return any;
  };
  std::int64_t wanted = usual;
  for (std::int64_t rows = kDeviceMicroBatch; rows > usual && wanted == usual; rows /= 2) {
    set_micro_batch(rows);
    if (good(streaming())) wanted = rows;
  }
  set_micro_batch(usual);
  return wanted;
}

// The host's memory may be too small all the same, which is another error.
bool Planner::device_serves() const {
  const PlacementRequest least{.in_passes = true, .frugal = true};
  for (const int k : candidates()) {
    const StagePlan plan = stages(k);
    const MemoryNeeds needs = memory_needs(needs_request(plan, least, 0));
    if (plan_device(residency_request(plan, least, 0), *device_budget_ - needs.device) ||
        placement_of(plan, least))
      return true;
  }
  return fits_in_memory(stages(request_.settings.rounds_per_rank().value_or(1)), false);
}

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

ResidencyRequest Planner::residency_request(const StagePlan& plan, const PlacementRequest& wanted,
                                            std::int64_t memory) const {
  // How often a usual pass goes through a head that does not stay.
  const std::int64_t at_once = head_rows(needs_request(plan, wanted, 0));
  const std::int64_t sweeps =
      std::max<std::int64_t>(1, (shape_.wanted_rows + at_once - 1) / at_once);
  ResidencyRequest request{.sizes = weight_sizes(plan),
                           .windows = {},
                           .ranks = control_.size(),
                           .memory = memory,
                           .head_sweeps = sweeps,
                           .one_micro_batch = one_micro_batch()};
  for (const auto& [begin, end] : plan.layers_of(control_.rank()))
    request.windows.push_back(end - begin);
  return request;
}

// Without a budget, layers that share a slab share its memory (create --distinct-layers).
bool Planner::fits_in_memory(const StagePlan& plan, bool in_passes) const {
  if (request_.device != nullptr) {
    const auto placement = placement_of(plan, {.in_passes = in_passes});
    return placement && !placement->streams();
  }
  const WeightSizes sizes = weight_sizes(plan);
  std::int64_t layers = layers_here(plan);
  if (!given_) layers = std::min(layers, request_.store.manifest().distinct_layers);
  return memory_needs(needs_request(plan, in_passes, 0)).total() + layers * sizes.layer() +
             sizes.embedding_in_memory + sizes.head_in_memory - sizes.shared <=
         *budget_;
}

StagingPlan Planner::staging_of(const StagePlan& plan, const Placement& placement) const {
  const Residency& residency = placement.host;
  const DeviceSplit* const split = placement.split ? &*placement.split : nullptr;
  StagingPlan staging;
  std::size_t i = 0, of_device = 0, of_host = 0;
  for (const auto& [begin, end] : plan.layers_of(control_.rank()))
    for (std::int64_t layer = begin; layer < end; ++layer, ++i) {
      StagedLayer& staged = staging.layers.emplace_back(StagedLayer{.layer = layer});
      staged.on_cpu = split != nullptr && split->on_cpu[i];
      if (staged.on_cpu) continue;  // and pinned
      staged.on_device = split != nullptr && split->device.pinned[of_device++];
      staged.pinned = !staged.on_device && residency.pinned[of_host++];
    }
  staging.attention_slots = residency.attention_slots;
  staging.mlp_slots = residency.mlp_slots;
  if (split != nullptr)
    staging.device = {.attention_slots = split->device.attention_slots,
                      .mlp_slots = split->device.mlp_slots,
                      .head = split->device.head_in_memory};
  const auto residence = [](bool present, bool in_memory) {
    return !present ? Residence::kAbsent : in_memory ? Residence::kMemory : Residence::kDisk;
  };
  staging.embedding = residence(has_embedding(plan), residency.embedding_in_memory);
  const bool through = split != nullptr && split->device.head_in_memory;
  staging.head = residence(has_head(plan), residency.head_in_memory && !through);
  return staging;
}

std::int64_t Planner::least_device_weights(const JobPlan& plan) const {
  return smallest_device_memory(beside_processor(
      residency_request(plan.stages, {.in_passes = plan.in_passes, .frugal = true}, 0),
      wanted_cpu_layers().value_or(0)));
}

Error Planner::device_too_small(const JobPlan& plan) const {
  const std::int64_t least = least_device_weights(plan);
  return resource_error(
      fmt::format("{} of device memory cannot hold {}: {} are for activations, keys and values and "
                  "logits, and {} for the least of weights, one layer and the ends of the model",
                  format_bytes(*device_budget_), plan.stages.describe(control_.rank()),
                  format_bytes(plan.needs.device), format_bytes(least)),
      fmt::format("--device-memory {}MB, a smaller --micro-batch, or --device cpu",
                  (plan.needs.device + least) / 1'000'000 + 1));
}

// A budget is what the user says; the card may have less. Of ranks that share one, one may take
// more than another: what all of them together find free is theirs.
void Planner::check_device_has(const JobPlan& plan, const Placement& placement) const {
  if (!placement.split) return;
  const Backend& device = *request_.device;
  const std::int64_t wanted = plan.needs.device + placement.split->device.memory;
  const std::int64_t free = device.free_bytes() * device.sharers();
  if (wanted <= free) return;
  const std::int64_t most = device.free_bytes();
  throw resource_error(
      fmt::format("{} has {} of memory free: expected {} for {}, out of a --device-memory of {}",
                  device.device_label(), format_bytes(free), format_bytes(wanted),
                  plan.stages.describe(control_.rank()), format_bytes(*device_budget_)),
      most < plan.needs.device + least_device_weights(plan)
          ? "end what else takes its memory, a smaller --micro-batch, or --device cpu"
          : fmt::format("a smaller --device-memory: {}MB at most", most / 1'000'000));
}

Error Planner::too_small(const JobPlan& plan) const {
  ResidencyRequest request =
      residency_request(plan.stages, {.in_passes = plan.in_passes, .frugal = true}, 0);
  std::int64_t on_cpu = 0;  // bytes
  if (request_.device != nullptr) {
    const std::int64_t layers = wanted_cpu_layers().value_or(0);
    request = beside_processor(request, layers);
    on_cpu = layers * request.sizes.layer();
    const auto device = plan_device(request, *device_budget_ - plan.needs.device);
    if (!device) return device_too_small(plan);
    request = beside_device(request, *device);
  }
  const std::int64_t weights = smallest_memory(request) + on_cpu;
  const std::int64_t smallest = plan.needs.total() + weights;
  return resource_error(
      fmt::format("{} of memory cannot hold {}: {}; and weights of at least {}, one layer (its "
                  "largest part, the {}, has {}) and the ends of the model",
                  format_bytes(*budget_), plan.stages.describe(control_.rank()),
                  plan.needs.describe(), format_bytes(weights),
                  request.sizes.mlp >= request.sizes.attention ? "mlp" : "attention",
                  format_bytes(std::max(request.sizes.mlp, request.sizes.attention))),
      // A little more than the least: the process grows while it is being said.
      fmt::format("{}--memory {}MB, or a smaller --micro-batch{}",
                  given_ ? "" : "free some memory: ", smallest / 1'000'000 + 8,
                  control_.rank() == 0 && shape_.sequences > 1 ? " or --max-sequences" : ""));
}

void Planner::log(const JobPlan& plan, const Placement& placement) const {
  const Residency& residency = placement.host;
  if (placement.split) {
    const Residency& device = placement.split->device;
    const auto held = std::count(device.pinned.begin(), device.pinned.end(), true);
    const std::int64_t on_cpu = placement.split->cpu_layers();
    spdlog::log(control_.rank() > 0 ? spdlog::level::debug : spdlog::level::info,
                "{}: {} of {} layers on the device, {} a pass copied to it{}, {} of {} used",
                plan.stages.describe(control_.rank()), held, placement.split->on_cpu.size(),
                format_bytes(device.streamed),
                on_cpu > 0 ? fmt::format(", {} computed by the processor", on_cpu) : "",
                format_bytes(plan.needs.device + device.memory), format_bytes(*device_budget_));
    if (residency.pinned.empty()) return;
  }
  const auto pinned = std::count(residency.pinned.begin(), residency.pinned.end(), true);
  const std::string text = fmt::format(
      "{}: {} of {} layers in memory, {} a pass from disk, {} windows, {} of {} used",
      plan.stages.describe(control_.rank()), pinned, residency.pinned.size(),
      format_bytes(residency.streamed), plan.stages.windows.size(),
      format_bytes(plan.needs.total() + placement.host_memory()), format_bytes(*budget_));
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

std::vector<std::int64_t> JobPlan::cpu_layers() const {
  std::vector<std::int64_t> layers;
  for (const StagedLayer& layer : staging.layers)
    if (layer.on_cpu) layers.push_back(layer.layer);
  return layers;
}

JobPlan negotiate_plan(const PlanRequest& request, ControlChannel& control) {
  Planner planner(request, control);
  planner.hear_shape();
  Offer mine;
  std::exception_ptr failure;
  try {
    planner.check_cpu_layers();
    planner.find_budget();
    planner.know_costs();
    planner.settle_device();
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
