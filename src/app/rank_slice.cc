#include "app/rank_slice.h"

#include <algorithm>
#include <utility>

#include "app/slice_sizes.h"
#include "base/byte_size.h"
#include "base/log.h"
#include "base/machine_limits.h"
#include "engine/kv_cache.h"
#include "plan/cost_model.h"
#include "stager/layer_stager.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// Of the memory that a host has free, without --memory.
constexpr double kShareOfFree = 0.85;
constexpr double kShareOfDevice = 0.9;  // likewise, without --device-memory
// Of a disk that has not been measured: an ordinary SSD.
constexpr double kAssumedDisk = 1e9;  // bytes per second
// Likewise of a device: an ordinary card on PCIe 3 with 16 lanes.
constexpr DeviceRates kAssumedDevice{.memory = 300e9, .halves = 20e12, .bus = 12e9};

}  // namespace

RankSlice::RankSlice(const PlanRequest& request, const Transport& transport)
    : request_(request),
      rank_(transport.rank()),
      ranks_(transport.size()),
      host_(transport.host(transport.rank())),
      spec_(request.store.manifest().spec),
      weights_(request.store.manifest().weights),
      shape_(request.shape),
      micro_batch_(request.settings.micro_batch > 0 ? request.settings.micro_batch
                                                    : kUsualMicroBatch) {}

// ---- What there is ----

void RankSlice::find_budgets() {
  const int here = launched_local_size();
  budget_ = memory_budget({.flag = request_.settings.memory,
                           .job_file = request_.settings.job,
                           .host = host_,
                           .ranks_here = here});
  given_ = budget_.has_value();
  if (has_device())
    device_budget_ = memory_budget({.flag = request_.settings.device_memory,
                                    .job_file = request_.settings.job,
                                    .host = host_,
                                    .ranks_here = request_.device->sharers(),
                                    .of_node = &HostSpec::device_memory})
                         .value_or(static_cast<std::int64_t>(
                             kShareOfDevice * static_cast<double>(request_.device->free_bytes())));
  if (!given_)
    budget_ = resident_bytes() +
              static_cast<std::int64_t>(kShareOfFree * static_cast<double>(available_bytes(here)));
  know_costs();
}

void RankSlice::set_micro_batch(std::int64_t rows) {
  if (std::exchange(micro_batch_, rows) != rows) know_costs();
}

void RankSlice::give_up_device() {
  request_.device = nullptr;
  request_.packing = request_.cpu_packing;
}

DeviceRates RankSlice::device_rates() const {
  const std::optional<MachineLimits> limits = cached_limits();
  const DeviceLimit* const measured =
      limits ? limits->device(request_.device->device_label()) : nullptr;
  return measured != nullptr ? stagecoach::device_rates({*measured}).or_else(kAssumedDevice)
                             : kAssumedDevice;
}

double RankSlice::disk_rate() const {
  return cached_disk_rate(request_.store.root()).value_or(kAssumedDisk);
}

// `probe` has measured the host, or nothing is known: then the device computes everything.
void RankSlice::know_costs() {
  costs_.clear();
  const std::optional<MachineLimits> limits = cached_limits();
  if (!has_device() || !limits) return;
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

// ---- What the slice is ----

std::optional<std::int64_t> RankSlice::wanted_cpu_layers() const {
  return parse_cpu_layers(request_.settings.cpu_layers);
}

std::int64_t RankSlice::layers(const StagePlan& stages) const {
  std::int64_t layers = 0;
  for (const auto& [begin, end] : stages.layers_of(rank_)) layers += end - begin;
  return layers;
}

bool RankSlice::has_embedding(const StagePlan& stages) const {
  return request_.layer_begin == 0 && rank_ == stages.windows.front().rank;
}

bool RankSlice::has_head(const StagePlan& stages) const {
  return request_.layer_end == spec_.num_hidden_layers && rank_ == stages.last_rank();
}

bool RankSlice::one_micro_batch() const {
  return shape_.usual_pass <= std::min(kOneMicroBatch, micro_batch_);
}

NeedsRequest RankSlice::needs_request(const StagePlan& stages, const Wanted& wanted,
                                      std::int64_t cpu_layers) const {
  return {.spec = spec_,
          .shape = shape_,
          .kv_type = request_.settings.kv_type(),
          .micro_batch = micro_batch_,
          .layers = layers(stages),
          .largest_window = stages.largest_window(),
          .head = has_head(stages),
          .in_passes = wanted.in_passes,
          .packing = request_.packing,
          .threads = request_.threads,
          .ranks = ranks_,
          .on_device = has_device(),
          .device_messages = request_.device_messages,
          .cpu_layers = cpu_layers,
          .cpu_packing = request_.cpu_packing,
          .frugal = wanted.frugal};
}

WeightSizes RankSlice::weight_sizes(const StagePlan& stages) const {
  return slice_sizes(spec_, weights_,
                     {.embedding = has_embedding(stages), .head = has_head(stages)});
}

ResidencyRequest RankSlice::residency_request(const StagePlan& stages, const Wanted& wanted,
                                              std::int64_t memory) const {
  // How often a usual pass goes through a head that does not stay.
  const std::int64_t at_once = head_rows(needs_request(stages, wanted, 0));
  const std::int64_t sweeps =
      std::max<std::int64_t>(1, (shape_.wanted_rows + at_once - 1) / at_once);
  ResidencyRequest request{.sizes = weight_sizes(stages),
                           .windows = {},
                           .ranks = ranks_,
                           .memory = memory,
                           .head_sweeps = sweeps,
                           .one_micro_batch = one_micro_batch()};
  for (const auto& [begin, end] : stages.layers_of(rank_)) request.windows.push_back(end - begin);
  return request;
}

// ---- Where it goes ----

std::optional<DeviceSplit> RankSlice::split_of(const StagePlan& stages, const Wanted& wanted,
                                               std::int64_t cpu_layers) const {
  const MemoryNeeds needs = memory_needs(needs_request(stages, wanted, cpu_layers));
  return plan_split(residency_request(stages, wanted, *budget_ - needs.total()),
                    *device_budget_ - needs.device, cpu_layers);
}

std::optional<DeviceSplit> RankSlice::chosen_split(const StagePlan& stages,
                                                   const Wanted& wanted) const {
  const auto with = [&](std::int64_t layers) {
    auto split = split_of(stages, wanted, layers);
    return wanted.in_memory && split && split->streams() ? std::nullopt : split;
  };
  if (const auto layers = wanted_cpu_layers()) return with(*layers);
  // What a checkpoint keeps fits one split only, and what is free may have changed when it is read.
  if (request_.settings.keeps_passes()) return with(0);
  std::int64_t most = costs_.empty() ? 0 : layers(stages);
  if (const auto alone = split_of(stages, wanted, 0))
    most = std::min<std::int64_t>(most, std::ranges::count(alone->device.pinned, false));
  return best_split(with, most, costs_, {.bus = device_rates().bus, .disk = disk_rate()});
}

std::optional<Placement> RankSlice::placement_of(const StagePlan& stages,
                                                 const Wanted& wanted) const {
  if (has_device()) {
    auto split = chosen_split(stages, wanted);
    if (!split) return std::nullopt;
    return Placement{.host = split->host, .split = std::move(split)};
  }
  const MemoryNeeds needs = memory_needs(needs_request(stages, wanted, 0));
  const auto host = plan_residency(residency_request(stages, wanted, *budget_ - needs.total()));
  if (!host) return std::nullopt;
  return Placement{.host = *host, .split = std::nullopt};
}

std::optional<Placement> RankSlice::in_passes(const StagePlan& stages) const {
  auto placement = placement_of(stages, {.in_passes = true});
  return placement ? placement : placement_of(stages, {.in_passes = true, .frugal = true});
}

// Without a budget, layers that share a slab share its memory (create --distinct-layers).
bool RankSlice::fits_in_memory(const StagePlan& stages, bool in_passes) const {
  if (has_device()) {
    const auto placement = placement_of(stages, {.in_passes = in_passes});
    return placement && !placement->streams();
  }
  const WeightSizes sizes = weight_sizes(stages);
  std::int64_t distinct = layers(stages);
  if (!given_) distinct = std::min(distinct, request_.store.manifest().distinct_layers);
  return memory_needs(needs_request(stages, {.in_passes = in_passes}, 0)).total() +
             distinct * sizes.layer() + sizes.embedding_in_memory + sizes.head_in_memory -
             sizes.shared <=
         *budget_;
}

// The host's memory may be too small all the same, which is another error.
bool RankSlice::device_serves(std::span<const StagePlan> plans) const {
  const Wanted least{.in_passes = true, .frugal = true};
  return fits_in_memory(plans.front(), false) ||
         std::any_of(plans.begin(), plans.end(), [&](const StagePlan& stages) {
           const MemoryNeeds needs = memory_needs(needs_request(stages, least, 0));
           return plan_device(residency_request(stages, least, 0),
                              *device_budget_ - needs.device) ||
                  placement_of(stages, least);
         });
}

double RankSlice::wait_seconds(const Placement& placement) const {
  if (!placement.split) return static_cast<double>(placement.host.waited) / disk_rate();
  PassCost cost = step_cost_;
  cost.device_layer = 0;
  return pass_seconds(*placement.split, cost, {.bus = device_rates().bus, .disk = disk_rate()});
}

std::int64_t RankSlice::cpu_layers_of(const std::optional<Placement>& placement) const {
  if (!placement) return wanted_cpu_layers().value_or(0);
  return placement->split ? placement->split->cpu_layers() : 0;
}

StagingPlan RankSlice::staging_of(const StagePlan& stages, const Placement& placement) const {
  const Residency& residency = placement.host;
  const DeviceSplit* const split = placement.split ? &*placement.split : nullptr;
  StagingPlan staging;
  std::size_t i = 0, of_device = 0, of_host = 0;
  for (const auto& [begin, end] : stages.layers_of(rank_))
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
  staging.embedding = residence(has_embedding(stages), residency.embedding_in_memory);
  const bool through = split != nullptr && split->device.head_in_memory;
  staging.head = residence(has_head(stages), residency.head_in_memory && !through);
  return staging;
}

void RankSlice::place(JobPlan& plan) const {
  Wanted wanted{.in_passes = plan.in_passes, .in_memory = !plan.in_passes && has_device()};
  auto placement = placement_of(plan.stages, wanted);
  if (!placement) {
    wanted.frugal = true;
    placement = placement_of(plan.stages, wanted);
  }
  const NeedsRequest sizes = needs_request(plan.stages, wanted, cpu_layers_of(placement));
  plan.needs = memory_needs(sizes);
  plan.batch_rows = largest_batch(sizes);
  plan.head_rows = head_rows(sizes);
  plan.waiting_on_device = waiting_on_device(sizes);
  if (!has_device() && (!plan.in_passes || fits_in_memory(plan.stages, true))) {
    plan.staging = all_in_memory({.layers = plan.stages.layers_of(rank_),
                                  .embedding = has_embedding(plan.stages),
                                  .head = has_head(plan.stages)});
    return;
  }
  if (!placement) throw too_small(plan);
  check_device_has(plan, *placement);
  plan.staging = staging_of(plan.stages, *placement);
  log(plan, *placement);
}

// ---- What does not fit ----

std::int64_t RankSlice::least_device_weights(const StagePlan& stages, bool in_passes) const {
  return smallest_device_memory(
      beside_processor(residency_request(stages, {.in_passes = in_passes, .frugal = true}, 0),
                       wanted_cpu_layers().value_or(0)));
}

Error RankSlice::device_too_small(const StagePlan& stages) const {
  return device_too_small(stages, true,
                          memory_needs(needs_request(stages, {.in_passes = true}, 0)));
}

Error RankSlice::device_too_small(const StagePlan& stages, bool in_passes,
                                  const MemoryNeeds& needs) const {
  const std::int64_t least = least_device_weights(stages, in_passes);
  return resource_error(
      fmt::format("{} of device memory cannot hold {}: {} are for activations, keys and values and "
                  "logits, and {} for the least of weights, one layer and the ends of the model",
                  format_bytes(*device_budget_), stages.describe(rank_), format_bytes(needs.device),
                  format_bytes(least)),
      fmt::format("--device-memory {}MB, a smaller --micro-batch, or --device cpu",
                  (needs.device + least) / 1'000'000 + 1));
}

// A budget is what the user says; the card may have less. Of ranks that share one, one may take
// more than another: what all of them together find free is theirs.
void RankSlice::check_device_has(const JobPlan& plan, const Placement& placement) const {
  if (!placement.split) return;
  const Backend& device = *request_.device;
  const std::int64_t wanted = plan.needs.device + placement.split->device.memory;
  const std::int64_t free = device.free_bytes() * device.sharers();
  if (wanted <= free) return;
  const std::int64_t most = device.free_bytes();
  throw resource_error(
      fmt::format("{} has {} of memory free: expected {} for {}, out of a --device-memory of {}",
                  device.device_label(), format_bytes(free), format_bytes(wanted),
                  plan.stages.describe(rank_), format_bytes(*device_budget_)),
      most < plan.needs.device + least_device_weights(plan.stages, plan.in_passes)
          ? "end what else takes its memory, a smaller --micro-batch, or --device cpu"
          : fmt::format("a smaller --device-memory: {}MB at most", most / 1'000'000));
}

Error RankSlice::too_small(const JobPlan& plan) const {
  ResidencyRequest request =
      residency_request(plan.stages, {.in_passes = plan.in_passes, .frugal = true}, 0);
  std::int64_t on_cpu = 0;  // bytes
  if (has_device()) {
    const std::int64_t layers = wanted_cpu_layers().value_or(0);
    request = beside_processor(request, layers);
    on_cpu = layers * request.sizes.layer();
    const auto device = plan_device(request, *device_budget_ - plan.needs.device);
    if (!device) return device_too_small(plan.stages, plan.in_passes, plan.needs);
    request = beside_device(request, *device);
  }
  const std::int64_t weights = smallest_memory(request) + on_cpu;
  const std::int64_t smallest = plan.needs.total() + weights;
  return resource_error(
      fmt::format("{} of memory cannot hold {}: {}; and weights of at least {}, one layer (its "
                  "largest part, the {}, has {}) and the ends of the model",
                  format_bytes(*budget_), plan.stages.describe(rank_), plan.needs.describe(),
                  format_bytes(weights),
                  request.sizes.mlp >= request.sizes.attention ? "mlp" : "attention",
                  format_bytes(std::max(request.sizes.mlp, request.sizes.attention))),
      // A little more than the least: the process grows while it is being said.
      fmt::format("{}--memory {}MB, or a smaller --micro-batch{}",
                  given_ ? "" : "free some memory: ", smallest / 1'000'000 + 8,
                  rank_ == 0 && shape_.sequences > 1 ? " or --max-sequences" : ""));
}

void RankSlice::log(const JobPlan& plan, const Placement& placement) const {
  const Residency& residency = placement.host;
  if (placement.split) {
    const Residency& device = placement.split->device;
    const auto held = std::count(device.pinned.begin(), device.pinned.end(), true);
    const std::int64_t on_cpu = placement.split->cpu_layers();
    spdlog::log(rank_ > 0 ? spdlog::level::debug : spdlog::level::info,
                "{}: {} of {} layers on the device, {} a pass copied to it{}, {} of {} used",
                plan.stages.describe(rank_), held, placement.split->on_cpu.size(),
                format_bytes(device.streamed),
                on_cpu > 0 ? fmt::format(", {} computed by the processor", on_cpu) : "",
                format_bytes(plan.needs.device + device.memory), format_bytes(*device_budget_));
    if (residency.pinned.empty()) return;
  }
  const auto pinned = std::count(residency.pinned.begin(), residency.pinned.end(), true);
  const std::string text = fmt::format(
      "{}: {} of {} layers in memory, {} a pass from disk, {} windows, {} of {} used",
      plan.stages.describe(rank_), pinned, residency.pinned.size(),
      format_bytes(residency.streamed), plan.stages.windows.size(),
      format_bytes(plan.needs.total() + placement.host_memory()), format_bytes(*budget_));
  if (rank_ > 0 || residency.streamed == 0) {
    spdlog::debug("{}", text);
    return;
  }
  if (!given_)
    spdlog::info(
        "the model does not fit in free memory: it streams from disk (--memory says how much to "
        "use)");
  spdlog::info("{}", text);
}

}  // namespace stagecoach
