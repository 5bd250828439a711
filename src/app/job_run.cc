#include "app/job_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "app/output.h"
#include "app/signals.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/registry.h"
#include "base/byte_size.h"
#include "base/dtype_names.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/version.h"
#include "pipeline/clock_sync.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// The ranks of this host share its cores.
int default_threads() {
  const char* local = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  const int ranks_here = local != nullptr ? std::max(1, std::atoi(local)) : launched_size();
  return std::max(1, allowed_cpus() / ranks_here);
}

BackendRegistry device_registry() {
  BackendRegistry registry;
  registry.add("cpu", make_cpu_backend);
  return registry;
}

// Linux counts kilobytes.
std::int64_t peak_resident_bytes() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? std::int64_t{usage.ru_maxrss} * 1024 : 0;
}

}  // namespace

void JobRun::open() {
  store_.emplace(settings_.store);
  const Manifest& manifest = store_->manifest();
  const std::int64_t layers = manifest.spec.num_hidden_layers;
  const auto [begin, end] = kind_.layers.empty() ? std::pair<std::int64_t, std::int64_t>{0, layers}
                                                 : parse_layer_range(kind_.layers, layers);
  make_plan(begin, end);
  const int rank = transport_.rank();
  if (rank == 0 && transport_.size() > 1) spdlog::info("{}", describe_plan());
  slice_.layers = plan_.layers_of(rank);
  slice_.embedding = begin == 0 && rank == plan_.windows.front().rank;
  slice_.head = end == layers && rank == plan_.last_rank();
  backend_ = device_registry().create(
      settings_.device == "auto" ? "cpu" : settings_.device,
      {.threads = settings_.threads > 0 ? settings_.threads : default_threads(), .isa = {}});
  isa_ = backend_->isa();
  {
    const std::lock_guard lock(description_mutex_);
    for (int r = 0; r < transport_.size(); ++r)
      descriptions_.push_back(" (" + plan_.describe(r) + ")");
  }
  if (rank == 0) {
    if (!settings_.report.empty())
      check_writable(settings_.report);  // before hours of work, not after
    kind_.prepare(*store_);
  }
}

void JobRun::load() {
  Progress progress("loading", ProgressUnit::kBytes, transport_.rank() == 0 && !settings_.quiet);
  source_.emplace(*store_, slice_, settings_.verify_mode(), timeline_,
                  [&](std::int64_t done, std::int64_t total) {
                    if (interrupt_requested) throw Error(ErrorKind::kInterrupted, "interrupted");
                    progress.update(done, total);
                  });
  runner_.emplace(spec(), *backend_, *source_, timeline_, settings_.micro_batch);
  spdlog::debug("{}: {} of weights, {} threads, {}", plan_.describe(transport_.rank()),
                format_bytes(source_->bytes()), backend_->threads(), isa_);
}

RankStatus JobRun::status() const {
  const Manifest& manifest = store_->manifest();
  RankStatus status;
  status.version = STAGECOACH_VERSION " (" STAGECOACH_BUILD ")";
  status.plan_hash = xxh3(as_bytes(fmt::format("{:x} {} {} {}", plan_hash(plan_), settings_.wire,
                                               settings_.kv, settings_.micro_batch)));
  status.model_hash =
      xxh3(as_bytes(to_json(manifest.spec).dump() + std::string(dtype_name(manifest.weights))));
  const auto checksum = [&](int slab) { return slab < 0 ? 0 : manifest.slab_checksum(slab); };
  for (int slab : manifest.layer_slab) status.slab_checksums.push_back(checksum(slab));
  status.slab_checksums.push_back(checksum(manifest.embedding_slab));
  status.slab_checksums.push_back(checksum(manifest.head_slab));
  status.isa = isa_;
  status.device = backend_->name();
  return status;
}

void JobRun::run() {
  const RankContext context{.spec = spec(),
                            .plan = plan_,
                            .runner = *runner_,
                            .transport = transport_,
                            .timeline = timeline_,
                            .wire = settings_.wire == "bf16" ? WireType::kBF16 : WireType::kF32,
                            .has_head = plan_.layer_end() == spec().num_hidden_layers,
                            .interrupted = &interrupt_requested,
                            .observe_logits = nullptr};
  const std::vector<ClockOffset> clocks_before = measure_clocks(control_);
  if (transport_.rank() == 0) {
    batches_ = kind_.make_source(view());
    run_rank_zero(context, *batches_);
  } else {
    run_other_rank(context);
  }
  const std::vector<ClockOffset> clocks_after = measure_clocks(control_);
  ranks_ = gather_timelines(control_, timeline_, usage(), clocks_before, clocks_after);
}

void JobRun::finish() {
  if (transport_.rank() != 0) return;
  if (!settings_.report.empty()) write_report(settings_.report, run_info(), ranks_);
  kind_.finish(view(), ranks_);
}

std::string JobRun::describe(int rank) const {
  const std::lock_guard lock(description_mutex_);
  return descriptions_.empty() ? "" : descriptions_[static_cast<std::size_t>(rank)];
}

RankUsage JobRun::usage() {
  const int rank = transport_.rank();
  return with_cached_limits(
      {.layers = plan_.describe(rank).substr(std::string_view("layers ").size()),
       .isa = isa_,
       .threads = backend_->threads(),
       .weights_bytes = source_->bytes(),
       .kv_bytes = runner_->kv().bytes(),
       .peak_bytes = peak_resident_bytes()});
}

RunInfo JobRun::run_info() const {
  const Manifest& manifest = store_->manifest();
  RunInfo info{.command = kind_.command,
               .work = {},
               .model = manifest.name,
               .model_version = manifest.version,
               .weights = std::string(dtype_name(manifest.weights)),
               .build = STAGECOACH_VERSION " (" STAGECOACH_BUILD ")",
               .wire = settings_.wire,
               .layer_begin = plan_.layer_begin(),
               .layer_end = plan_.layer_end(),
               .model_layers = spec().num_hidden_layers,
               .distinct_layers = manifest.distinct_layers,
               .micro_batch = settings_.micro_batch,
               .ranks = plan_.ranks,
               .tokens_per_second = std::nullopt,
               .phases = {}};
  kind_.describe(view(), ranks_, info);
  return info;
}

std::string JobRun::describe_plan() const {
  std::string text = fmt::format("{} ranks:", plan_.ranks);
  for (int r = 0; r < plan_.ranks; ++r)
    text += fmt::format("{} {} {}", r == 0 ? "" : ",", transport_.host(r), plan_.describe(r));
  return text;
}

void JobRun::make_plan(std::int64_t begin, std::int64_t end) {
  const ModelSpec& s = spec();
  const DType weights = store_->manifest().weights;
  if (!settings_.windows.empty()) {
    plan_ = explicit_plan(settings_.windows, begin, end, transport_.size());
    if (settings_.rounds != "auto" &&
        settings_.rounds_per_rank() * transport_.size() != static_cast<int>(plan_.windows.size()))
      throw usage_error(
          fmt::format("--windows {} has {} windows, --rounds {} on {} ranks expects {}",
                      settings_.windows, plan_.windows.size(), settings_.rounds, transport_.size(),
                      settings_.rounds_per_rank() * transport_.size()));
    return;
  }
  PlanCosts costs{.layer_bytes = slab_weight_bytes(s, SlabKind::kLayer, weights)};
  const std::int64_t embedding = slab_weight_bytes(s, SlabKind::kEmbedding, weights);
  if (begin == 0) costs.embedding_bytes = embedding;
  if (end == s.num_hidden_layers)
    costs.head_bytes =
        slab_weight_bytes(s, SlabKind::kHead, weights) + (s.tied_head ? embedding : 0);
  plan_ = balanced_plan(costs, begin, end, transport_.size(), settings_.rounds_per_rank());
}

}  // namespace stagecoach
