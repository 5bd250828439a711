#include "app/job_plan.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "app/rank_slice.h"
#include "app/slice_sizes.h"
#include "base/archive.h"
#include "base/error.h"
#include "base/log.h"
#include "base/machine_limits.h"

namespace stagecoach {
namespace {

constexpr std::uint32_t kShapeMagic = archive_magic("SHAP");
constexpr std::uint32_t kOfferMagic = archive_magic("OFFR");
constexpr std::uint32_t kChoiceMagic = archive_magic("CHOI");
// Where `stagecoach probe` has not run: a hop between two PCs.
constexpr double kAssumedHop = 200e-6;  // seconds

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
        slice_(request, control.transport()) {}

  // Throws usage_error for layers that no rank has, or none with a device.
  void check_cpu_layers() const {
    const std::int64_t wanted = slice_.wanted_cpu_layers().value_or(0);
    if (wanted == 0) return;
    if (!slice_.has_device())
      throw usage_error(fmt::format("--cpu-layers {} needs a GPU for the other layers: this rank "
                                    "computes on the CPU alone",
                                    wanted),
                        "--device cuda, or --cpu-layers auto");
    for (const StagePlan& plan : candidate_plans())
      if (wanted > slice_.layers(plan))
        throw usage_error(fmt::format("--cpu-layers {}: expected at most {}, for {}", wanted,
                                      slice_.layers(plan), plan.describe(control_.rank())),
                          "--cpu-layers auto");
  }

  // Throws usage_error for a budget that is no size.
  void find_budgets() { slice_.find_budgets(); }

  // A device that nobody has asked for by name may be too small for the least of a slice.
  void settle_device() {
    if (!slice_.has_device() || !request_.device_optional) return;
    const std::vector<StagePlan> plans = candidate_plans();
    if (slice_.device_serves(plans)) return;
    spdlog::warn("computing on the CPU: {}", slice_.device_too_small(plans.front()).what());
    slice_.give_up_device();
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

  void hear_shape() {
    slice_.set_shape(broadcast(control_, kShapeMagic, request_.shape, "the job's size"));
  }

  Offer offer() {
    Offer offer;
    const Streaming usual = streaming();
    offer.fits = usual.in_memory;
    const int next = (control_.rank() + 1) % control_.size();
    offer.hop = cached_network_latency(control_.transport().host(next)).value_or(kAssumedHop);
    const std::vector<StagePlan> plans = candidate_plans();
    for (std::size_t i = 0; i < plans.size(); ++i) {
      const std::optional<Placement>& placement = usual.in_passes[i];
      offer.waits.push_back(placement && holds_layers(plans[i]) ? slice_.wait_seconds(*placement)
                                                                : -1);
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
    const bool finest = !slice_.one_micro_batch() || keeps;
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
    // 0: some rank ends the job.
    if (choice.micro_batch > 0) slice_.set_micro_batch(choice.micro_batch);
    JobPlan plan;
    plan.stages = stages(choice.rounds);
    plan.shape = slice_.shape();
    plan.micro_batch = slice_.micro_batch();
    plan.in_passes = choice.in_passes;
    plan.without_device = without_device_;
    slice_.place(plan);
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
  // Of each rank, as choices of rounds: just one where the user has chosen.
  std::vector<int> candidates() const {
    if (!auto_rounds()) return {request_.settings.rounds_per_rank().value_or(1)};
    return candidate_rounds(request_.layer_end - request_.layer_begin, control_.size());
  }
  std::vector<StagePlan> candidate_plans() const {
    std::vector<StagePlan> plans;
    for (const int rounds : candidates()) plans.push_back(stages(rounds));
    return plans;
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
  // A host may have imported a slice only.
  bool holds_layers(const StagePlan& plan) const {
    for (const auto& [begin, end] : plan.layers_of(control_.rank()))
      if (!request_.store.manifest().has_layers(begin, end)) return false;
    return true;
  }
  // Whether nothing streams, and for each choice of rounds what does in passes, if they fit.
  struct Streaming {
    bool in_memory = false;
    std::vector<std::optional<Placement>> in_passes;
  };
  Streaming streaming() const {
    const int rounds = request_.settings.rounds_per_rank().value_or(1);
    Streaming found{.in_memory = slice_.fits_in_memory(stages(rounds), false), .in_passes = {}};
    for (const StagePlan& plan : candidate_plans())
      found.in_passes.push_back(slice_.in_passes(plan));
    return found;
  }
  std::int64_t wanted_micro_batch(const Streaming& least);

  const PlanRequest& request_;
  ControlChannel& control_;
  const ModelSpec& spec_;
  RankSlice slice_;
  bool without_device_ = false;
};

// A device likes large micro-batches, as long as no more of its weights have to stream for them.
// What a checkpoint keeps fits one size only, and what is free may have changed when it is read.
std::int64_t Planner::wanted_micro_batch(const Streaming& least) {
  const std::int64_t usual = slice_.micro_batch();
  if (request_.settings.micro_batch > 0 || !slice_.has_device() || request_.settings.keeps_passes())
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
    slice_.set_micro_batch(rows);
    if (good(streaming())) wanted = rows;
  }
  slice_.set_micro_batch(usual);
  return wanted;
}

StagePlan Planner::stages(int rounds) const {
  const std::int64_t begin = request_.layer_begin, end = request_.layer_end;
  const RunSettings& settings = request_.settings;
  const DType weights = request_.store.manifest().weights;
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
  PlanCosts costs{.layer_bytes = slab_weight_bytes(spec_, SlabKind::kLayer, weights)};
  const std::int64_t embedding = slab_weight_bytes(spec_, SlabKind::kEmbedding, weights);
  if (begin == 0) costs.embedding_bytes = embedding;
  if (end == spec_.num_hidden_layers)
    costs.head_bytes =
        slab_weight_bytes(spec_, SlabKind::kHead, weights) + (spec_.tied_head ? embedding : 0);
  // With rounds, the ends are a small part of a rank's work, and far more than a window's.
  if (rounds > 1) costs = {.layer_bytes = costs.layer_bytes};
  return balanced_plan(costs, begin, end, control_.size(), rounds);
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
    planner.find_budgets();
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
