#include "app/job_run.h"

#include <sys/resource.h>

#include <algorithm>
#include <exception>
#include <tuple>
#include <utility>

#include "app/device_choice.h"
#include "app/input_packing.h"
#include "app/output.h"
#include "app/signals.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/cuda_module.h"
#include "backend/device_scratch.h"
#include "base/byte_size.h"
#include "base/dtype_names.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/version.h"
#include "engine/kv_cache.h"
#include "pipeline/clock_sync.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// The ranks of this host share its cores.
int default_threads() {
  return std::max(1, allowed_cpus() / launched_local_size());
}

// What products multiply weights with. bf16 without an instruction for it is float32's work.
std::string input_name(InputPacking packing) {
  if (packing == InputType::kInt8) return "int8";
  if (packing == InputType::kF16) return "f16";
  return packing == InputType::kBF16 ? "bf16" : "f32";
}

// Linux counts kilobytes.
std::int64_t peak_resident_bytes() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? std::int64_t{usage.ru_maxrss} * 1024 : 0;
}

}  // namespace

void JobRun::open() {
  store_.emplace(settings_.store);
  const std::int64_t layers = spec().num_hidden_layers;
  std::tie(layer_begin_, layer_end_) = kind_.layers.empty()
                                           ? std::pair<std::int64_t, std::int64_t>{0, layers}
                                           : parse_layer_range(kind_.layers, layers);
  open_backend();
  isa_ = backend_->isa();
  packing_ = packing_of(*backend_);
  if (transport_.rank() != 0) return;
  try {
    if (!settings_.report.empty())
      check_writable(settings_.report);  // before hours of work, not after
  } catch (const Error& error) {
    throw LastingError(error);
  }
  kind_.prepare(*store_);
  shape_ = kind_.shape(*store_);
}

void JobRun::open_backend() {
  const int threads = settings_.threads > 0 ? settings_.threads : default_threads();
  device_failed_ = true;
  backend_ = open_device(settings_.device, threads);
  device_failed_ = false;
  if (backend_->is_host()) {
    // A job file may be for PCs with a GPU, and this one. Once, of all its ranks and jobs.
    static bool said = launched_local_rank().value_or(0) > 0;
    const bool silent = parse_device(settings_.device).kind == DeviceChoice::Kind::kAuto &&
                        !settings_.device_memory.empty() && !has_cuda_driver();
    if (silent && !std::exchange(said, true))
      spdlog::warn("--device-memory {}: this PC has no GPU with a driver, its processor computes",
                   settings_.device_memory);
    return;
  }
  processor_ = open_processor(threads);
  check_heads();
}

bool JobRun::device_is_lost() const {
  if (backend_ == nullptr) return device_failed_;
  if (backend_->is_host()) return false;
  try {
    return backend_->free_bytes() < 0;
  } catch (const Error&) {
    return true;
  }
}

InputPacking JobRun::packing_of(const Backend& backend) const {
  const DType weights = store_->manifest().weights;
  return input_packing(settings_.activations, weights,
                       {.bf16 = backend.multiplies(InputType::kBF16, weights),
                        .f16 = backend.multiplies(InputType::kF16, weights)});
}

DeviceMessages* JobRun::device_messages() const {
  const bool as_they_are = !backend_->is_host() && wire() == WireType::kF32;
  return as_they_are ? transport_.device_messages() : nullptr;
}

bool JobRun::device_optional() const {
  return parse_device(settings_.device).kind == DeviceChoice::Kind::kAuto &&
         parse_cpu_layers(settings_.cpu_layers).value_or(0) == 0;
}

void JobRun::compute_without_device() {
  backend_ = std::move(processor_);
  isa_ = backend_->isa();
  packing_ = packing_of(*backend_);
}

// Before a pass meets one that the device's attention cannot take.
void JobRun::check_heads() {
  if (spec().head_dim <= kLargestDeviceHead) return;
  const Error refused = resource_error(
      fmt::format("the model's heads have {} dimensions: attention on a GPU takes {} at most",
                  spec().head_dim, kLargestDeviceHead),
      "--device cpu");
  if (!device_optional()) throw refused;
  if (transport_.rank() == 0) spdlog::warn("computing on the CPU: {}", refused.what());
  compute_without_device();
}

void JobRun::plan() {
  plan_ = negotiate_plan({.store = *store_,
                          .settings = settings_,
                          .layer_begin = layer_begin_,
                          .layer_end = layer_end_,
                          .shape = shape_,
                          .packing = packing_,
                          .threads = backend_->threads(),
                          .device = backend_->is_host() ? nullptr : backend_.get(),
                          .device_messages = device_messages() != nullptr,
                          .cpu_packing = packing_of(processor_ ? *processor_ : *backend_),
                          .device_optional = device_optional()},
                         control_);
  if (plan_.without_device) compute_without_device();
  const std::vector<std::int64_t> cpu_layers = plan_.cpu_layers();
  if (cpu_layers.empty()) {
    processor_.reset();
  } else {
    isa_ = fmt::format("{} and {}", backend_->isa(), processor_->isa());
  }
  shape_ = plan_.shape;
  if (transport_.rank() == 0 && transport_.size() > 1) spdlog::info("{}", describe_plan());
  {
    const std::lock_guard lock(description_mutex_);
    for (int r = 0; r < transport_.size(); ++r)
      descriptions_.push_back(" (" + plan_.stages.describe(r) + ")");
  }
  resume_ = {.layers = 0, .window = 0, .forget_kv = shape_.forget_kv};
}

void JobRun::load() {
  Progress progress("loading", ProgressUnit::kBytes, transport_.rank() == 0 && !settings_.quiet);
  StagerOptions options;
  options.verify = settings_.verify_mode();
  options.stall =
      std::chrono::milliseconds(static_cast<std::int64_t>(settings_.disk_timeout * 1000));
  options.passes = shape_.passes;
  options.progress = [&progress](std::int64_t done, std::int64_t total) {
    if (interrupt_requested) throw Error(ErrorKind::kInterrupted, "interrupted");
    progress.update(done, total);
  };
  options.interrupted = [] { return interrupt_requested.load(); };
  if (resume_.layers > 0) options.first_layer = resume_.layers;
  if (!backend_->is_host())
    options.pin = [this](std::span<std::byte> memory) { return backend_->pin(memory); };
  source_.emplace(*store_, plan_.staging, options, timeline_);
  LayerSource* weights = &*source_;
  if (!backend_->is_host())
    weights =
        &device_source_.emplace(*source_, *store_, plan_.staging, options, *backend_, timeline_);
  std::optional<StageRunner::CpuLayers> cpu;
  if (processor_) {
    const std::vector<std::int64_t> layers = plan_.cpu_layers();
    cpu.emplace(StageRunner::CpuLayers{.backend = *processor_,
                                       .weights = *source_,
                                       .packing = packing_of(*processor_),
                                       .layers = {layers.begin(), layers.end()}});
  }
  runner_.emplace(spec(), *backend_, *weights, timeline_,
                  StageRunner::Limits{.max_rows = plan_.batch_rows,
                                      .head_rows = plan_.head_rows,
                                      .packing = packing_,
                                      .kv_type = settings_.kv_type(),
                                      .before_layer =
                                          [] {
                                            if (interrupt_requested)
                                              throw Error(ErrorKind::kInterrupted, "interrupted");
                                          }},
                  cpu);
  spdlog::debug("{}: {} of weights, {} threads, {}", plan_.stages.describe(transport_.rank()),
                format_bytes(source_->bytes()), backend_->threads(), isa_);
  if (transport_.size() > 1 && !backend_->is_host())
    spdlog::debug(
        "hidden states go to other ranks from {}",
        device_messages() != nullptr ? "the GPU's memory, by CUDA-aware MPI" : "the host's memory");
}

RankStatus JobRun::status() const {
  const Manifest& manifest = store_->manifest();
  RankStatus status;
  status.command = kind_.command;
  status.version = STAGECOACH_VERSION " (" STAGECOACH_BUILD ")";
  const std::uint64_t stages = plan_.stages.windows.empty() ? 0 : plan_hash(plan_.stages);
  status.plan_hash = xxh3(as_bytes(fmt::format(
      "{:x} {} {} {} {} {} {} {} {}", stages, plan_.in_passes, settings_.wire, settings_.kv,
      settings_.activations, plan_.micro_batch > 0 ? plan_.micro_batch : settings_.micro_batch,
      settings_.rounds, settings_.windows, keeps_checkpoint())));
  status.model_hash =
      xxh3(as_bytes(to_json(manifest.spec).dump() + std::string(dtype_name(manifest.weights))));
  const auto checksum = [&](int slab) { return slab < 0 ? 0 : manifest.slab_checksum(slab); };
  for (int slab : manifest.layer_slab) status.slab_checksums.push_back(checksum(slab));
  status.slab_checksums.push_back(checksum(manifest.embedding_slab));
  status.slab_checksums.push_back(checksum(manifest.head_slab));
  status.isa = isa_;
  status.device = backend_->name();
  status.split = !plan_.cpu_layers().empty();
  if (status.split) status.device += " and " + processor_->name();
  return status;
}

void JobRun::run() {
  const RankContext context{.spec = spec(),
                            .plan = plan_.stages,
                            .runner = *runner_,
                            .transport = transport_,
                            .timeline = timeline_,
                            .wire = wire(),
                            .device_messages = device_messages(),
                            .waiting_on_device = plan_.waiting_on_device,
                            .in_passes = plan_.in_passes,
                            .has_head = layer_end_ == spec().num_hidden_layers,
                            .checkpoint = checkpoint_ ? &*checkpoint_ : nullptr,
                            .resume_layers = resume_.layers,
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
  const RankUsage used = usage();
  // Reports of long runs are large, too.
  runner_.reset();
  device_source_.reset();
  source_.reset();
  ranks_ = gather_timelines(control_, timeline_, used, clocks_before, clocks_after);
}

void JobRun::finish() {
  if (transport_.rank() != 0) return;
  kind_.finish(view(), ranks_);  // results first: a report may find its disk full
  if (!settings_.report.empty()) write_report(settings_.report, run_info(), ranks_);
}

std::string JobRun::describe(int rank) const {
  const std::lock_guard lock(description_mutex_);
  return descriptions_.empty() ? "" : descriptions_[static_cast<std::size_t>(rank)];
}

RankUsage JobRun::usage() {
  const int rank = transport_.rank();
  return with_cached_limits(
      {.layers = plan_.stages.describe(rank).substr(std::string_view("layers ").size()),
       .isa = isa_,
       .device = backend_->device_label(),
       .cpu_layers = plan_.cpu_layers(),
       .inputs = input_name(packing_),
       .threads = backend_->threads(),
       .weights_bytes = source_->bytes(),
       .kv_bytes = runner_->host_kv_bytes(),
       .device_weights_bytes = device_source_ ? device_source_->bytes() : 0,
       .device_kv_bytes = runner_->device_kv_bytes(),
       .peak_bytes = peak_resident_bytes()},
      store_->root());
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
               .kv = settings_.kv,
               .layer_begin = plan_.stages.layer_begin(),
               .layer_end = plan_.stages.layer_end(),
               .model_layers = spec().num_hidden_layers,
               .distinct_layers = manifest.distinct_layers,
               .micro_batch = plan_.micro_batch,
               .ranks = plan_.stages.ranks,
               .tokens_per_second = std::nullopt,
               .phases = {}};
  kind_.describe(view(), ranks_, info);
  return info;
}

std::string JobRun::describe_plan() const {
  std::string text = fmt::format("{} ranks:", plan_.stages.ranks);
  for (int r = 0; r < plan_.stages.ranks; ++r)
    text +=
        fmt::format("{} {} {}", r == 0 ? "" : ",", transport_.host(r), plan_.stages.describe(r));
  return text;
}

std::int64_t JobRun::pass_tokens() const {
  if (!plan_.in_passes) return 0;
  return shape_.largest_pass;
}

// Of the whole job, on every rank: hosts may hold different slabs, and share the folder.
CheckpointIdentity JobRun::checkpoint_identity() {
  const RankStatus own = status();
  const bool on_host = backend_->is_host();
  const CheckpointOrigin all =
      gather_origin(control_, {.slab_checksums = own.slab_checksums,
                               .isas = {on_host ? who_computes() : "GPU " + who_computes()}});
  std::string slabs;
  for (const std::uint64_t checksum : all.slab_checksums) slabs += hash_to_hex(checksum);
  // Hidden states are the same whoever computes them, unless instruction sets differ or they are
  // rounded on their way, or a GPU's library has summed as the micro-batch's size made it. Keys and
  // values are kept as the plan's micro-batches wrote them.
  const bool one_isa = std::all_of(all.isas.begin(), all.isas.end(),
                                   [&](const std::string& isa) { return isa == isa_; });
  const bool alike =
      std::ranges::adjacent_find(all.isas, std::ranges::not_equal_to()) == all.isas.end();
  const bool any_plan = shape_.forget_kv && one_isa && settings_.wire == "f32" && on_host;
  CheckpointIdentity identity{
      {"model", fmt::format("{} {}", store_->manifest().name,
                            hash_to_hex(xxh3(as_bytes(hash_to_hex(own.model_hash) + slabs))))},
      {"text", hash_to_hex(shape_.work)},
      {"KV type", settings_.kv},
      {"activation type", settings_.activations},
      // Before the plan, which another device is another of, too.
      {"instruction set", alike ? all.isas.front() : fmt::format("{}", fmt::join(all.isas, ","))},
      {"plan", any_plan ? "any" : hash_to_hex(own.plan_hash)}};
  const auto detail = [&identity](const char* what, const std::string& value) {
    identity.emplace_back(std::string(kPlanDetail) + what, value);
  };
  if (any_plan) return identity;
  detail("ranks", std::to_string(plan_.stages.ranks));
  detail("windows", windows_flag(plan_.stages));
  detail("--micro-batch", std::to_string(plan_.micro_batch));
  detail("--wire", settings_.wire);
  detail("--rounds", settings_.rounds);
  detail("--windows", settings_.windows.empty() ? "none" : settings_.windows);
  return identity;
}

// With the layers that are the processor's.
std::string JobRun::who_computes() const {
  const std::vector<std::int64_t> layers = plan_.cpu_layers();
  return layers.empty() ? isa_ : fmt::format("{} for {}", isa_, fmt::join(layers, " "));
}

// Why a score's hidden states depend on who computed them.
std::string JobRun::why_of_one_plan(const CheckpointIdentity& identity) const {
  if (settings_.wire == "bf16") return "--wire bf16 rounds on its way from rank to rank";
  if (!backend_->is_host()) return "GPUs sum up as the micro-batches come";
  const bool any_plan =
      std::find(identity.begin(), identity.end(),
                std::pair<std::string, std::string>{"plan", "any"}) != identity.end();
  return any_plan ? "its hosts had unlike instruction sets" : "hosts have unlike instruction sets";
}

// Of the files that this rank will have on its disk at once, at least.
std::int64_t JobRun::least_checkpoint_bytes() const {
  const int rank = transport_.rank();
  std::int64_t windows = 0, layers = 0;
  for (const Window& window : plan_.stages.windows) {
    if (window.rank != rank) continue;
    ++windows;
    layers += window.end - window.begin;
  }
  constexpr std::int64_t kNewest = 3;  // one of them is being written
  if (settings_.checkpoint_care.newest) windows = std::min(windows, kNewest);
  const std::int64_t row = spec().hidden_size * static_cast<std::int64_t>(sizeof(float));
  std::int64_t bytes = windows * shape_.largest_pass * row;
  if (!shape_.forget_kv)
    bytes += layers * (shape_.largest_pass / kKvPageTokens) *
             KvCache::page_bytes(spec(), settings_.kv_type());
  return bytes;
}

// Collective: after as many layers as can be.
void JobRun::find_resume_point() {
  const int rank = transport_.rank();
  const CheckpointIdentity identity = checkpoint_identity();
  CheckpointContents mine;
  std::exception_ptr failure;
  try {
    checkpoint_.emplace(settings_.checkpoint, identity, shape_.content, spec().hidden_size,
                        fmt::format("rank-{}", rank), settings_.checkpoint_care);
    mine = checkpoint_contents(*checkpoint_, plan_.stages, rank, !shape_.forget_kv);
    mine.discarded = checkpoint_->discarded_layers();
  } catch (const Error&) {
    failure = std::current_exception();
  }
  CheckpointPoint point = agree_on_resume(control_, mine, plan_.stages);
  if (failure) std::rethrow_exception(failure);
  const auto warn = [](const std::string& why) { spdlog::warn("{}", why); };
  while (point.layers > 0 &&
         !all_hear(control_, point,
                   rank != point.has || is_whole(*checkpoint_, point.layers, mine, warn))) {
    forget_gone(*checkpoint_, mine);
    point = agree_on_resume(control_, mine, plan_.stages);
  }
  if (point.layers == 0) checkpoint_->require_room(least_checkpoint_bytes());
  share_hidden(control_, *checkpoint_, point);
  if (rank == 0 && point.discarded > 0)
    spdlog::warn(
        "starting from the first layer: what was computed of the first {} layers, in {}, is of "
        "another plan, and {}",
        point.discarded, settings_.checkpoint, why_of_one_plan(identity));
  resume_.layers = point.layers;
  resume_.window = point.window;
  if (rank == 0 && resume_.layers > 0)
    spdlog::info("going on after {} of {} layers, from {}", resume_.layers,
                 plan_.stages.layer_end(), settings_.checkpoint);
}

}  // namespace stagecoach
