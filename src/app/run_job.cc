#include "app/run_job.h"

#include <cstdlib>
#include <mutex>
#include <thread>
#include <utility>

#include "app/job_run.h"
#include "app/last_word.h"
#include "app/output.h"
#include "app/rank_process.h"
#include "app/signals.h"
#include "base/host.h"
#include "base/log.h"
#include "pipeline/agreement.h"
#include "timeline/rank_split.h"
#include "transport/mpi_module.h"

namespace stagecoach {
namespace {

// How long another rank waits before it says what rank 0 may be saying for all.
constexpr std::chrono::seconds kRankZeroFirst{2};

// The process's part in the jobs that run one after the other: what lives longer than one of them.
// The control channel does, because a fast rank's first message of the next job may come early.
class JobSession {
 public:
  explicit JobSession(const RunSettings& settings) : transport_(open_transport()) {
    setup_rank_logging(*transport_, settings.quiet, settings.verbose);
    control_.emplace(*transport_);
    watch_ = watch_peers(*transport_, settings.peer_timeout,
                         [this](int peer) { return describe(peer); });
  }

  // Throws AgreedError when all ranks know of the error and rank 0 has reported it: they may go on
  // with the next job. In a process of its own any error is such.
  void run(const JobStep& step);
  // With the job's exit code, of which rank 0 leaves word.
  void end(int code);

 private:
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

// Whether the next job would meet it, too.
bool lasts(const std::exception& exception, const JobRun& job) {
  return dynamic_cast<const LastingError*>(&exception) != nullptr || job.device_is_lost();
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
    status.lasting = lasts(exception, job);
  }
  // Ranks agree several times a job, and a warning is worth one line.
  agree(*control_, status,
        {.error = [&](const Error& error) { print_error(error, job.name()); },
         .warning = [this](const std::string& warning) { warn_once(warning); }});
}

void JobSession::run_together(JobRun& job) {
  step_together(job, [&] { job.open(); });
  step_together(job, [&] { job.plan(); });
  if (job.keeps_checkpoint()) step_together(job, [&] { job.find_resume_point(); });
  step_together(job, [&] { job.load(); });
  if (control_->rank() == 0) spdlog::debug("all ranks are ready");
  job.run();
  // Others wait while rank 0 writes results: a rank that left early would count as lost.
  step_together(job, [&] { job.finish(); });
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
    throw AgreedError(error, lasts(exception, job));
  }
}

void JobSession::end(int code) {
  try {
    if (control_->rank() == 0) leave_last_word(code);
  } catch (const Error& error) {
    if (transport_->size() == 1) throw;
    end_for_all(*transport_, error, "");
  }
  watch_.reset();
  finalize(*transport_);
}

}  // namespace

std::string run_tables(const JobView& view, const std::vector<RankTimeline>& ranks) {
  return format_layer_table(layer_rows(ranks)) + format_rank_table(rank_splits(ranks)) +
         format_critical_paths(critical_paths(ranks)) + store_note(view.store);
}

std::string store_note(const LayerStore& store) {
  const Manifest& manifest = store.manifest();
  const std::int64_t layers = manifest.spec.num_hidden_layers;
  if (manifest.distinct_layers >= layers) return {};
  return fmt::format("note: {}\n", shared_slabs_note(layers, manifest.distinct_layers));
}

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
      if (error.lasting() || error.kind() == ErrorKind::kInterrupted ||
          error.kind() == ErrorKind::kPeerLost)
        break;
    }
  }
  session.end(code);
  // Rank 0's word says it all, and over ranks that end in error mpirun would make a fuss, in which
  // that of Open MPI 5 may hang.
  return is_worth_a_last_word(code) ? 0 : code;
}

int run_job(const RunSettings& settings, const JobKind& kind) {
  return run_jobs({{.name = {}, .settings = settings, .kind = kind}});
}

void print_error_of_launched_rank(const Error& error) {
  const int rank = launched_rank();
  if (rank > 0) std::this_thread::sleep_for(kRankZeroFirst);
  // What rank 0 says of flags all ranks would say.
  const bool named = rank > 0 || (launched_size() > 1 && error.kind() != ErrorKind::kUsage);
  if (rank == 0 || !interrupt_requested)
    print_error(error, named ? fmt::format("rank {} on {}", rank, host_name("this host")) : "");
}

void share_failure(const Error& error) {
  std::unique_ptr<Transport> transport;
  try {
    transport = open_transport();
  } catch (const Error& unreachable) {
    print_error_of_launched_rank(unreachable);  // nobody can be told through MPI
    throw AgreedError(unreachable);
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
