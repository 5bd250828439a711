#include "app/plan_inputs.h"

#include <algorithm>
#include <utility>

#include "app/input_packing.h"
#include "app/slice_sizes.h"
#include "backend/device_scratch.h"
#include "base/error.h"
#include "base/machine_limits.h"
#include "engine/kv_cache.h"

namespace stagecoach {
namespace {

// What Open MPI adds to the process that this one is, as measured.
constexpr std::int64_t kMpiBytes = std::int64_t{24} << 20;
// What CUDA and its libraries take of the host, about.
constexpr std::int64_t kCudaBytes = std::int64_t{400} << 20;
// Of a rank: their stacks are a small part of its memory.
constexpr int kThreads = 8;

}  // namespace

PlanInputs::PlanInputs(Manifest manifest, PlannedWork work)
    : manifest_(std::move(manifest)), spec_(manifest_.spec), work_(std::move(work)) {
  shape_ = {.largest_pass = std::max(work_.sequences, std::min(work_.tokens * work_.sequences,
                                                               affordable_pass(spec_.hidden_size))),
            .usual_pass = work_.sequences,
            .wanted_rows = work_.sequences,
            .sequences = work_.sequences,
            .positions = work_.tokens + work_.new_tokens};
}

PlanQuestion PlanInputs::question(ClusterSpec cluster) const {
  // A run would refuse them.
  if (work_.cpu_layers.value_or(0) > spec_.num_hidden_layers)
    throw usage_error(fmt::format("--cpu-layers {}: expected at most {}, the model's layers",
                                  *work_.cpu_layers, spec_.num_hidden_layers),
                      "--cpu-layers auto");
  for (const HostSpec& host : cluster.hosts)
    if (host.on_device() && spec_.head_dim > kLargestDeviceHead)
      throw resource_error(
          fmt::format("{} has a GPU, whose attention takes heads of {} dimensions at most: the "
                      "model's have {}",
                      host.name, kLargestDeviceHead, spec_.head_dim),
          fmt::format("leave device_memory out of nodes.{}", host.name));
  PlanQuestion question(spec_);
  question.layer_bytes = slice_sizes(spec_, manifest_.weights, {}).layer();
  question.head_bytes = slice_sizes(spec_, manifest_.weights, {.head = true}).head_matrix;
  question.kv_bytes = KvCache::page_bytes(spec_, work_.kv_type) / kKvPageTokens;
  question.cluster = std::move(cluster);
  question.prompt_tokens = work_.tokens;
  question.new_tokens = work_.new_tokens;
  question.sequences = work_.sequences;
  question.cpu_layers = work_.cpu_layers;
  const InputPacking packing = packing_of(question.cluster);
  question.micro_batch =
      work_.micro_batch > 0 ? work_.micro_batch : agreed_micro_batch(question.cluster, packing);
  question.arithmetic = packing == InputType::kInt8   ? Arithmetic::kInt8
                        : packing == InputType::kBF16 ? Arithmetic::kBF16
                                                      : Arithmetic::kF32;
  const auto needs_of = [this, packing, rows = question.micro_batch](const RankShape& rank) {
    return needs_request(rank, packing, rows);
  };
  question.head_rows = head_rows(needs_of({}));
  question.head_rows_in_passes = head_rows(needs_of({.in_passes = true}));
  question.slice_sizes = [this](bool embedding, bool head) {
    return slice_sizes(spec_, manifest_.weights, {.embedding = embedding, .head = head});
  };
  // Of the process once: it grows while plans are compared.
  const std::int64_t process = kMpiBytes + memory_needs(needs_of({})).process;
  question.other_device_memory = [needs_of](const RankShape& rank) {
    return memory_needs(needs_of(rank)).device;
  };
  question.other_memory = [needs_of, process](const RankShape& rank) {
    const MemoryNeeds needs = memory_needs(needs_of(rank));
    return needs.total() - needs.process + process + (rank.on_device ? kCudaBytes : 0);
  };
  return question;
}

NeedsRequest PlanInputs::needs_request(const RankShape& rank, InputPacking packing,
                                       std::int64_t micro_batch) const {
  return {.spec = spec_,
          .shape = shape_,
          .kv_type = work_.kv_type,
          .micro_batch = micro_batch,
          .layers = rank.layers,
          .largest_window = rank.largest_window,
          .head = rank.head,
          .in_passes = rank.in_passes,
          .packing = packing,
          .threads = kThreads,
          .ranks = rank.ranks,
          .on_device = rank.on_device,
          .cpu_layers = rank.cpu_layers,
          .cpu_packing = packing,
          .frugal = rank.frugal};
}

// About what ranks agree on: they know which layers then stream, which here depends on the plan.
std::int64_t PlanInputs::agreed_micro_batch(const ClusterSpec& cluster,
                                            InputPacking packing) const {
  constexpr std::int64_t kPartOfDevice = 4;
  std::int64_t rows = kDeviceMicroBatch;
  for (const HostSpec& host : cluster.hosts) {
    if (!host.on_device()) return kUsualMicroBatch;
    const RankShape rank{.layers = 1, .largest_window = 1, .head = true, .on_device = true};
    while (rows > kUsualMicroBatch &&
           kPartOfDevice * memory_needs(needs_request(rank, packing, rows)).device >
               host.device_memory)
      rows /= 2;
  }
  return rows;
}

InputPacking PlanInputs::packing_of(const ClusterSpec& cluster) const {
  // Without instructions for it a host's bf16 is its f32 (`probe`).
  const bool bf16_dot =
      std::all_of(cluster.hosts.begin(), cluster.hosts.end(),
                  [](const HostSpec& host) { return host.rates.bf16 > 1.2 * host.rates.f32; });
  const bool used = is_quantized(manifest_.weights) || manifest_.weights == DType::kBF16;
  return input_packing(work_.activations, manifest_.weights, {.bf16 = bf16_dot && used});
}

std::optional<HostRates> rates_of_this_machine(const std::string& store) {
  const std::optional<MachineLimits> limits = cached_limits();
  if (!limits) return std::nullopt;
  return HostRates{.memory = limits->memory.all_threads,
                   .f32 = limits->f32.rate.all_threads,
                   .bf16 = limits->bf16.rate.all_threads,
                   .int8 = limits->int8.rate.all_threads,
                   .disk = limits->disk_rate(store).value_or(0)};
}

DeviceRates device_rates_of_this_machine() {
  const std::optional<MachineLimits> limits = cached_limits();
  return limits ? device_rates(limits->devices) : DeviceRates{};
}

}  // namespace stagecoach
