#include "app/run_job.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <mutex>
#include <thread>
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
#include "pipeline/agreement.h"
#include "pipeline/clock_sync.h"
#include "pipeline/peer_watch.h"
#include "stager/resident_source.h"
#include "transport/loopback/loopback_transport.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// How long another rank waits before it says what rank 0 may be saying for all.
constexpr std::chrono::seconds kRankZeroFirst{2};

std::unique_ptr<Transport> open_transport() {
  if (launched_size() > 1) return open_mpi_transport();
  return std::move(make_loopback(1).front());
}

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

std::string local_host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof(name) - 1) == 0 ? name : "this host";
}

// Linux counts kilobytes.
std::int64_t peak_resident_bytes() {
  rusage usage{};
  return ::getrusage(RUSAGE_SELF, &usage) == 0 ? std::int64_t{usage.ru_maxrss} * 1024 : 0;
}

std::string name_of(const Transport& transport, int rank) {
  return transport.size() == 1 ? "" : fmt::format("rank {} on {}", rank, transport.host(rank));
}

// One rank's part of a job, in the order in which things happen.
class JobRun {
 public:
  JobRun(const JobStep& step, ControlChannel& control)
      : settings_(step.settings),
        kind_(step.kind),
        name_(step.name),
        transport_(control.transport()),
        control_(control) {}

  ControlChannel& control() { return control_; }
  const std::string& name() const { return name_; }

  void open() {
    store_.emplace(settings_.store);
    const Manifest& manifest = store_->manifest();
    const std::int64_t layers = manifest.spec.num_hidden_layers;
    const auto [begin, end] = kind_.layers.empty()
                                  ? std::pair<std::int64_t, std::int64_t>{0, layers}
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

  void load() {
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

  RankStatus status() const {
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

  void run() {
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

  void finish() {
    if (transport_.rank() != 0) return;
    if (!settings_.report.empty()) write_report(settings_.report, run_info(), ranks_);
    kind_.finish(view(), ranks_);
  }

  // The layers of a rank, for messages; empty before there is a plan. Called by the watching
  // thread.
  std::string describe(int rank) const {
    const std::lock_guard lock(description_mutex_);
    return descriptions_.empty() ? "" : descriptions_[static_cast<std::size_t>(rank)];
  }

 private:
  const ModelSpec& spec() const { return store_->manifest().spec; }
  JobView view() const { return {*store_, plan_, settings_.micro_batch, isa_}; }

  RankUsage usage() {
    const int rank = transport_.rank();
    return {.layers = plan_.describe(rank).substr(std::string_view("layers ").size()),
            .isa = isa_,
            .threads = backend_->threads(),
            .weights_bytes = source_->bytes(),
            .kv_bytes = runner_->kv().bytes(),
            .peak_bytes = peak_resident_bytes()};
  }

  RunInfo run_info() const {
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

  // What a host's store must hold.
  std::string describe_plan() const {
    std::string text = fmt::format("{} ranks:", plan_.ranks);
    for (int r = 0; r < plan_.ranks; ++r)
      text += fmt::format("{} {} {}", r == 0 ? "" : ",", transport_.host(r), plan_.describe(r));
    return text;
  }

  void make_plan(std::int64_t begin, std::int64_t end) {
    const ModelSpec& s = spec();
    const DType weights = store_->manifest().weights;
    if (!settings_.windows.empty()) {
      plan_ = explicit_plan(settings_.windows, begin, end, transport_.size());
      if (settings_.rounds != "auto" &&
          settings_.rounds_per_rank() * transport_.size() != static_cast<int>(plan_.windows.size()))
        throw usage_error(
            fmt::format("--windows {} has {} windows, --rounds {} on {} ranks expects {}",
                        settings_.windows, plan_.windows.size(), settings_.rounds,
                        transport_.size(), settings_.rounds_per_rank() * transport_.size()));
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

  const RunSettings& settings_;
  const JobKind& kind_;
  const std::string& name_;
  Transport& transport_;
  ControlChannel& control_;
  std::optional<LayerStore> store_;
  StagePlan plan_;
  mutable std::mutex description_mutex_;
  std::vector<std::string> descriptions_;
  ResidentSlice slice_;
  std::unique_ptr<Backend> backend_;
  std::string isa_;
  Timeline timeline_;
  std::optional<ResidentSource> source_;
  std::optional<StageRunner> runner_;
  std::unique_ptr<BatchSource> batches_;
  std::vector<RankTimeline> ranks_;  // rank 0, after run()
};

// The process's part in the jobs that run one after the other: what lives longer than one of them.
// The control channel does, because a fast rank's first message of the next job may come early.
class JobSession {
 public:
  explicit JobSession(const RunSettings& settings) : transport_(open_transport()) {
    const int rank = transport_->rank();
    setup_logging(settings.verbose             ? Verbosity::kVerbose
                  : settings.quiet || rank > 0 ? Verbosity::kQuiet
                                               : Verbosity::kNormal,
                  name_of(*transport_, rank));
    control_.emplace(*transport_);
    watch_ = watch_peers(settings.peer_timeout);
  }

  // Throws AgreedError when all ranks know of the error and rank 0 has reported it: they may go on
  // with the next job. In a process of its own any error is such.
  void run(const JobStep& step);
  void end();

 private:
  std::unique_ptr<PeerWatch> watch_peers(double timeout_seconds);
  void run_together(JobRun& job);
  template <typename Step>
  void step_together(JobRun& job, const Step& step);
  // The layers of a rank in the job that runs now, for messages; called by the watching thread.
  std::string describe(int peer) {
    const std::lock_guard lock(current_mutex_);
    return current_ == nullptr ? "" : current_->describe(peer);
  }
  // The watching thread asks for the job that runs while, and only while, there is one.
  class Current {
   public:
    Current(JobSession& session, const JobRun& job) : session_(session) { set(&job); }
    ~Current() { set(nullptr); }
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;

   private:
    void set(const JobRun* job) {
      const std::lock_guard lock(session_.current_mutex_);
      session_.current_ = job;
    }
    JobSession& session_;
  };
  void warn_once(const std::string& warning) {
    if (!std::exchange(warned_, true)) spdlog::warn("{}", warning);
  }

  std::unique_ptr<Transport> transport_;
  std::optional<ControlChannel> control_;
  std::mutex current_mutex_;
  const JobRun* current_ = nullptr;
  bool warned_ = false;
  std::unique_ptr<PeerWatch> watch_;
};

// Others depend on this rank: says what went wrong and ends the job everywhere.
// `job` is the name of the one that failed, or empty.
[[noreturn]] void end_for_all(Transport& transport, const Error& error, const std::string& job) {
  // Who pressed Ctrl-C knows; and mpirun sends the same signal to the ranks of a job that failed
  // elsewhere.
  if (error.kind() != ErrorKind::kInterrupted)
    print_error(error, (job.empty() ? "" : job + ": ") + name_of(transport, transport.rank()));
  transport.abort(error.exit_code());
  std::_Exit(error.exit_code());  // not reached; g++ does not see that abort is noreturn through
                                  // the interface
}

void finalize(Transport& transport) {
  try {
    transport.finalize();
  } catch (const Error& error) {
    if (transport.size() == 1) throw;
    end_for_all(transport, error, "");
  }
}

// One step that may fail on some ranks, and its agreement. The error of any rank becomes that of
// all.
template <typename Step>
void JobSession::step_together(JobRun& job, const Step& step) {
  RankStatus status;
  try {
    step();
    status = job.status();
  } catch (const std::exception& exception) {
    status = failed_status(as_error(exception));
  }
  // Ranks agree three times a job, and a warning is worth one line.
  agree(*control_, status,
        {.error = [&](const Error& error) { print_error(error, job.name()); },
         .warning = [this](const std::string& warning) { warn_once(warning); }});
}

void JobSession::run_together(JobRun& job) {
  step_together(job, [&] { job.open(); });
  step_together(job, [&] { job.load(); });
  if (control_->rank() == 0) spdlog::debug("all ranks are ready");
  job.run();
  // Others wait while rank 0 writes results: a rank that left early would count as lost.
  step_together(job, [&] { job.finish(); });
}

std::unique_ptr<PeerWatch> JobSession::watch_peers(double timeout_seconds) {
  PeerWatch::Events events;
  events.lost = [this](int peer, double seconds, bool reporter) {
    if (reporter) {
      const std::string problem = fmt::format(
          "{}{} has been silent for {:.1f} s: it was stopped, lost its network, or its host is "
          "down",
          name_of(*transport_, peer), describe(peer), seconds);
      print_error(
          Error(ErrorKind::kPeerLost, problem, "check that host, then run the same command again"),
          "");
    } else {
      std::this_thread::sleep_for(std::chrono::seconds(1));  // the reporter's message first
    }
    transport_->abort(static_cast<int>(ErrorKind::kPeerLost));
  };
  events.failed = [this](const Error& error) { end_for_all(*transport_, error, ""); };
  PeerWatchOptions options;
  options.silence = std::chrono::milliseconds(static_cast<std::int64_t>(timeout_seconds * 1000));
  return std::make_unique<PeerWatch>(*transport_, options, std::move(events));
}

void JobSession::run(const JobStep& step) {
  JobRun job(step, *control_);
  const Current current(*this, job);
  try {
    run_together(job);
  } catch (const AgreedError&) {
    throw;
  } catch (const std::exception& exception) {
    const Error error = as_error(exception);
    if (transport_->size() > 1) end_for_all(*transport_, error, step.name);
    print_error(error, step.name);
    throw AgreedError(error.kind(), error.what(), error.hint());
  }
}

void JobSession::end() {
  watch_.reset();
  finalize(*transport_);
}

}  // namespace

int run_jobs(const std::vector<JobStep>& steps) {
  STAGECOACH_CHECK(!steps.empty());
  JobSession session(steps.front().settings);
  int code = 0;
  for (const JobStep& step : steps) {
    try {
      session.run(step);
    } catch (const AgreedError& error) {
      if (code == 0) code = error.exit_code();
      // Not this job's fault: the next would meet it too.
      if (error.kind() == ErrorKind::kInterrupted || error.kind() == ErrorKind::kPeerLost) break;
    }
  }
  session.end();
  return code;
}

int run_job(const RunSettings& settings, const JobKind& kind) {
  return run_jobs({{.name = {}, .settings = settings, .kind = kind}});
}

void print_error_of_launched_rank(const Error& error) {
  const int rank = launched_rank();
  if (rank > 0) std::this_thread::sleep_for(kRankZeroFirst);
  if (rank == 0 || !interrupt_requested)
    print_error(error, rank > 0 ? fmt::format("rank {} on {}", rank, local_host_name()) : "");
}

void share_failure(const Error& error) {
  std::unique_ptr<Transport> transport;
  try {
    transport = open_transport();
  } catch (const Error& unreachable) {
    print_error_of_launched_rank(unreachable);  // nobody can be told through MPI
    throw AgreedError(unreachable.kind(), unreachable.what(), unreachable.hint());
  }
  ControlChannel control(*transport);
  try {
    agree(control, failed_status(error),
          {.error = [](const Error& agreed) { print_error(agreed, ""); },
           .warning = [](const std::string&) {}});
  } catch (const AgreedError&) {
    finalize(*transport);
    throw;
  }
}

}  // namespace stagecoach
