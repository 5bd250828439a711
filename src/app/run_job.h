// A run of a model on the ranks of a job: the composition root of generate, score and time.
// Everything that differs between those three is in the JobKind.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/settings.h"
#include "base/error.h"
#include "pipeline/rank_loop.h"
#include "pipeline/text_batches.h"
#include "plan/job_shape.h"
#include "timeline/report.h"

namespace stagecoach {

// What rank 0 knows when it makes its work.
struct JobView {
  const LayerStore& store;
  const StagePlan& plan;
  std::int64_t micro_batch = 0;  // rows of the largest that the work has
  const std::string& isa;
  std::int64_t pass_tokens = 0;  // rows of one pass, at most; 0: the job does not go in passes
  ResumePoint resume;
  std::int64_t micro_batch_limit = 0;  // rows that one may have
};

struct JobKind {
  // Layers to run, A:B; empty: all.
  std::string layers;
  // "time", for reports.
  std::string command;
  // Rank 0, when the ring is empty: what was run and how fast it was, into the fields of a report
  // that only the command knows: work, tokens_per_second and phases.
  std::function<void(const JobView&, const std::vector<RankTimeline>& ranks, RunInfo&)> describe;
  // Rank 0, before weights are read: reads prompts, checks them, opens outputs. Usage and data
  // errors thrown here end the job everywhere with one message.
  std::function<void(const LayerStore&)> prepare;
  // Rank 0, after prepare: the size of the work.
  std::function<JobShape(const LayerStore&)> shape;
  // Rank 0: the work. Called when all ranks are ready.
  std::function<std::unique_ptr<BatchSource>(const JobView&)> make_source;
  // Rank 0: results, when the ring is empty. `ranks` has everybody's timeline.
  std::function<void(const JobView&, const std::vector<RankTimeline>& ranks)> finish;
};

// The tables that a run ends with, for people: layers, ranks, the critical path of each phase, and
// what must be known of the store.
std::string run_tables(const JobView& view, const std::vector<RankTimeline>& ranks);
// "note: …", a line, where layers share slabs; else empty.
std::string store_note(const LayerStore& store);

// One of several jobs that run one after the other on the same ranks.
struct JobStep {
  std::string name;  // in front of its errors; may be empty
  RunSettings settings;
  JobKind kind;
};

// Runs them all, every rank in this order. A job that cannot run (its settings do not fit the
// model, its store is not there) is reported by its name, and the next one begins; a rank that
// fails while others depend on it ends all of them. Returns the exit code of the first failure, or
// 0, also where a last word (last_word.h) has it. Verbosity and the patience with silent ranks are
// those of the first job.
int run_jobs(const std::vector<JobStep>& steps);
// Of a single job without a name.
int run_job(const RunSettings& settings, const JobKind& kind);

// Says what kept this process from joining its job. Rank 0 speaks at once; another rank waits,
// because where rank 0 has the same trouble its exit ends us.
void print_error_of_launched_rank(const Error& error);

// For a rank of a job whose settings are wrong before run_job: joins the others at their first
// agreement, so that all end with this error and one message. Always throws AgreedError.
void share_failure(const Error& error);

}  // namespace stagecoach
