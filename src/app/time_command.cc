#include <algorithm>
#include <memory>
#include <optional>

#include "app/command.h"
#include "app/output.h"
#include "app/run_job.h"
#include "app/sweep.h"
#include "base/dtype_names.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "pipeline/agreement.h"
#include "pipeline/timing_batches.h"
#include "timeline/page/report_page.h"
#include "timeline/phase_results.h"
#include "timeline/rank_split.h"

namespace stagecoach {
namespace {

struct TimeFlags {
  RunSettings run;  // but what the axes vary
  SweepAxes axes;
  std::int64_t warmup = 1, repeat = 5;
  std::string phase = "prefill", layers, csv;
};

// What all combinations of a study share: the results so far, and where they go.
class TimingSweep {
 public:
  TimingSweep(const TimeFlags& flags, std::size_t combinations)
      : flags_(flags), combinations_(combinations) {}

  const TimeFlags& flags() const { return flags_; }
  bool single() const { return combinations_ == 1; }
  std::size_t combinations() const { return combinations_; }

  // Where combination `number` writes its own report; empty: nowhere.
  std::string report_of(int number) const {
    const std::string& folder = flags_.run.report;
    return single() || folder.empty() ? folder : fmt::format("{}/{:03}", folder, number);
  }

  // Written after every combination: a study may run for a night, and then fail.
  void add(SweepResult result) {
    results_.push_back(std::move(result));
    const std::string csv = sweep_csv(results_);
    try {
      if (!flags_.csv.empty()) write_output(flags_.csv, csv);
      if (!single() && !flags_.run.report.empty())
        write_file_atomically(std::filesystem::path(flags_.run.report) / "sweep.csv", csv);
    } catch (const Error& error) {
      throw LastingError(error);
    }
  }

 private:
  const TimeFlags& flags_;
  std::size_t combinations_;
  std::vector<SweepResult> results_;  // rank 0
};

// One combination.
class TimeJob {
 public:
  TimeJob(TimingSweep& sweep, const Combination& combination)
      : sweep_(sweep), flags_(sweep.flags()), combination_(combination) {
    if (flags_.phase != "decode") phases_.push_back(Phase::kPrefill);
    if (flags_.phase != "prefill") phases_.push_back(Phase::kDecode);
  }

  JobStep step() {
    JobStep step;
    step.name = combination_.name;
    step.settings = flags_.run;
    step.settings.store = combination_.store;
    step.settings.windows = combination_.windows;
    step.settings.threads = combination_.threads;
    step.settings.micro_batch = combination_.micro_batch;
    step.settings.report = sweep_.report_of(combination_.number);
    step.kind.command = "time";
    step.kind.layers = flags_.layers;
    step.kind.prepare = [this](const LayerStore& store) { prepare(store); };
    step.kind.shape = [this](const LayerStore& store) { return shape(store); };
    step.kind.make_source = [this](const JobView& view) { return make_source(view); };
    step.kind.describe = [this](const JobView&, const std::vector<RankTimeline>& ranks,
                                RunInfo& info) { describe(ranks, info); };
    step.kind.finish = [this](const JobView& view, const std::vector<RankTimeline>& ranks) {
      finish(view, ranks);
    };
    return step;
  }

 private:
  void prepare(const LayerStore& store) const {
    const Manifest& manifest = store.manifest();
    if (!combination_.weights.empty() && combination_.weights != dtype_name(manifest.weights))
      throw data_error(fmt::format("{}: expected {} weights, found {}", combination_.store,
                                   combination_.weights, dtype_name(manifest.weights)),
                       fmt::format("stagecoach inspect {}", combination_.store));
    const std::int64_t positions = combination_.tokens + (phases_.back() == Phase::kDecode ? 1 : 0);
    if (positions > manifest.spec.max_position_embeddings)
      throw usage_error(
          fmt::format("--tokens {} with --phase {} needs {} positions, the model's context is {}",
                      combination_.tokens, flags_.phase, positions,
                      manifest.spec.max_position_embeddings),
          fmt::format("--tokens {} at most", manifest.spec.max_position_embeddings -
                                                 (phases_.back() == Phase::kDecode ? 1 : 0)));
    check_table();
    if (!sweep_.single())
      spdlog::info("combination {} of {}: {}", combination_.number, sweep_.combinations(),
                   combination_.name);
  }

  // Before hours of work, not after.
  void check_table() const {
    if (flags_.csv.empty()) return;
    const std::filesystem::path file = flags_.csv;
    std::error_code ignored;
    try {
      if (std::filesystem::is_directory(file, ignored))
        throw resource_error(fmt::format("cannot write {}: it is a folder", flags_.csv),
                             "--csv FILE");
      check_writable(file.parent_path().empty() ? "." : file.parent_path());
    } catch (const Error& error) {
      throw LastingError(error);
    }
  }

  JobShape shape(const LayerStore& store) const {
    const bool prefills = phases_.front() == Phase::kPrefill;
    const bool decodes = phases_.back() == Phase::kDecode;
    const std::int64_t rows = combination_.tokens * combination_.batch;
    const std::int64_t studied = static_cast<std::int64_t>(phases_.size());
    const std::int64_t each = flags_.warmup + flags_.repeat;
    return {.largest_pass = rows,
            .usual_pass = prefills ? rows : combination_.batch,
            .wanted_rows = combination_.batch,
            .sequences = combination_.batch,
            .positions = std::min(combination_.tokens + (decodes ? 1 : 0),
                                  store.manifest().spec.max_position_embeddings),
            .forget_kv = !decodes,
            .passes = studied * each + (decodes ? 1 : 0),
            .prompt_rows = ((prefills ? each : 0) + (decodes ? 1 : 0)) * rows,
            .steps = decodes ? each : 0};
  }

  std::unique_ptr<BatchSource> make_source(const JobView& view) {
    std::vector<TimingStudy> studies;
    for (Phase phase : phases_)
      studies.push_back({.decode = phase == Phase::kDecode,
                         .tokens = combination_.tokens,
                         .batch = combination_.batch,
                         .warmup = flags_.warmup,
                         .repeat = flags_.repeat,
                         .micro_batch_tokens = view.micro_batch,
                         .depth = view.plan.ranks,
                         .embed = view.plan.layer_begin() == 0,
                         .vocab_size = view.store.manifest().spec.vocab_size,
                         .in_passes = view.pass_tokens > 0});
    progress_.emplace(sweep_.single() ? "timing" : "timing " + combination_.name,
                      ProgressUnit::kPasses, !flags_.run.quiet);
    auto source = std::make_unique<TimingStudies>(
        studies, [this](std::int64_t done, std::int64_t total) { progress_->update(done, total); });
    studies_ = source.get();
    return source;
  }

  void describe(const std::vector<RankTimeline>& ranks, RunInfo& info) const {
    info.work = fmt::format("{} of {} tokens, batch {}",
                            flags_.phase == "both" ? "prefill and decode" : flags_.phase,
                            combination_.tokens, combination_.batch);
    info.phases = phase_results_of(ranks);
  }

  void finish(const JobView& view, const std::vector<RankTimeline>& ranks) {
    progress_.reset();
    const std::vector<LayerRow> rows = layer_rows(ranks);
    const std::vector<PhaseResult> phases = phase_results_of(ranks);
    const std::vector<PhaseSplit> splits = phase_splits(ranks);
    print_rows(rows);
    if (!flags_.run.json && sweep_.single()) print(format_rank_table(rank_splits(ranks)));
    for (const PhaseResult& phase : phases) print_summary(view, phase, splits);
    if (!flags_.run.json)
      print(format_critical_paths(critical_paths(ranks)) + store_note(view.store));
    const Manifest& manifest = view.store.manifest();
    Combination combination = combination_;
    combination.micro_batch = view.micro_batch_limit;
    sweep_.add({.combination = combination,
                .weights = std::string(dtype_name(manifest.weights)),
                .windows = windows_flag(view.plan),
                .threads = describe_threads(run_summary({}, ranks).ranks),
                .ranks = view.plan.ranks,
                .phases = phases,
                .rows = rows});
  }

  std::vector<PhaseResult> phase_results_of(const std::vector<RankTimeline>& ranks) const {
    std::vector<PhaseResult> results;
    for (std::size_t i = 0; i < phases_.size(); ++i)
      results.push_back(phase_result(
          ranks, phases_[i], studies_->pass_ms(i),
          combination_.batch * (phases_[i] == Phase::kPrefill ? combination_.tokens : 1)));
    return results;
  }

  void print_rows(const std::vector<LayerRow>& rows) const {
    if (flags_.run.json) {
      for (const LayerRow& row : rows) {
        const std::string json = layer_row_json(row);
        print(sweep_.single()
                  ? json + "\n"
                  : fmt::format("{{\"combination\":{},{}\n", combination_.number, json.substr(1)));
      }
    } else if (sweep_.single()) {
      print(format_layer_table(rows));
    }
  }

  void print_summary(const JobView& view, const PhaseResult& phase,
                     const std::vector<PhaseSplit>& splits) const {
    const std::string weights(dtype_name(view.store.manifest().weights));
    if (!flags_.run.json) {
      print(fmt::format(
          "{}{}: {:.4g} ms a pass (quartiles {:.4g} to {:.4g}), {:.4g} tokens/s; embedding {:.3g} "
          "ms, head {:.3g} ms; {} rank{}, {} weights, {}\n",
          sweep_.single() ? "" : combination_.name + ": ", phase_name(phase.phase), phase.ms,
          phase.ms_q1, phase.ms_q3, phase.tokens_per_second, phase.embedding_ms, phase.head_ms,
          view.plan.ranks, view.plan.ranks == 1 ? "" : "s", weights, view.isa));
      return;
    }
    Json json{{"summary", true},
              {"phase", phase_name(phase.phase)},
              {"tokens_per_second", phase.tokens_per_second},
              {"ms", phase.ms},
              {"ms_q1", phase.ms_q1},
              {"ms_q3", phase.ms_q3},
              {"passes", phase.passes},
              {"embedding_ms", phase.embedding_ms},
              {"head_ms", phase.head_ms},
              {"ranks", view.plan.ranks},
              {"weights", weights},
              {"isa", view.isa},
              {"tokens", combination_.tokens},
              {"batch", combination_.batch},
              {"model_layers", view.store.manifest().spec.num_hidden_layers},
              {"distinct_layers", view.store.manifest().distinct_layers}};
    for (const PhaseSplit& split : splits)
      if (split.phase == phase.phase) json.update(Json(split_json(split)));
    if (!sweep_.single())
      json.update(
          {{"combination", combination_.number},
           {"store", combination_.store},
           {"windows", windows_flag(view.plan)},
           {"threads", combination_.threads > 0 ? Json(combination_.threads) : Json(nullptr)},
           {"micro_batch", view.micro_batch_limit}});
    print_json_line(json);
  }

  TimingSweep& sweep_;
  const TimeFlags& flags_;
  const Combination& combination_;
  std::vector<Phase> phases_;
  std::optional<Progress> progress_;
  const TimingStudies* studies_ = nullptr;  // the job's source, which outlives finish()
};

// Numbers may stand as 128,512; what has commas of its own is given several times.
template <typename T>
CLI::Option* add_list(CLI::App& app, const char* flag, std::vector<T>& values,
                      const std::string& help) {
  CLI::Option* option = app.add_option(flag, values, help)->allow_extra_args(false);
  return option;
}

void add_flags(CLI::App& app, TimeFlags& flags) {
  SweepAxes& axes = flags.axes;
  add_list(app, "--store", axes.stores,
           "Store directory, on every host at this path; with {weights} where --weights goes")
      ->type_name("STORE");
  add_list(app, "--weights", axes.weights, "Weight types: the {weights} of --store")
      ->delimiter(',')
      ->type_name("TYPE,...");
  add_list(app, "--threads", axes.threads,
           "Compute threads per rank (default: allowed cores / ranks on this host)")
      ->delimiter(',')
      ->type_name("N,...")
      ->check(integer_in(1, 4096));
  add_list(app, "--micro-batch", axes.micro_batches, micro_batch_help())
      ->delimiter(',')
      ->type_name("N,...")
      ->check(integer_in(1, 65536));
  add_list(app, "--windows", axes.windows,
           "Layers of each rank, like 0:5,5:12 (default: balanced by bytes); repeatable")
      ->type_name("A:B,...");
  add_list(app, "--tokens", axes.tokens,
           "Prefill: tokens of a sequence. Decode: context before the step")
      ->delimiter(',')
      ->type_name("N,...")
      ->check(integer_in(1, 1 << 24));
  add_list(app, "--batch", axes.batches, "Sequences (default: 1)")
      ->delimiter(',')
      ->type_name("N,...")
      ->check(integer_in(1, 65536));
  add_fixed_run_flags(app, flags.run);
  app.add_option("--phase", flags.phase, "What to time")
      ->capture_default_str()
      ->check(CLI::IsMember({"prefill", "decode", "both"}));
  app.add_option("--warmup", flags.warmup, "Passes that are not counted, first")
      ->capture_default_str()
      ->check(integer_in(0, 1000000));
  app.add_option("--repeat", flags.repeat, "Passes that are counted; figures are medians over them")
      ->capture_default_str()
      ->check(integer_in(1, 1000000));
  app.add_option("--layers", flags.layers, "Only these layers, A:B, 0-based and half-open")
      ->type_name("A:B");
  app.add_option("--csv", flags.csv, "Write every combination's figures to one table")
      ->type_name("FILE");
}

int run_time(TimeFlags& flags) {
  SweepAxes& axes = flags.axes;
  if (axes.micro_batches.empty()) axes.micro_batches = {flags.run.micro_batch};
  if (axes.batches.empty()) axes.batches = {1};
  const std::vector<Combination> all = combinations(axes);
  TimingSweep sweep(flags, all.size());
  std::vector<std::unique_ptr<TimeJob>> jobs;
  std::vector<JobStep> steps;
  for (const Combination& combination : all) {
    jobs.push_back(std::make_unique<TimeJob>(sweep, combination));
    steps.push_back(jobs.back()->step());
  }
  return run_jobs(steps);
}

}  // namespace

Command time_command(CLI::App& parent) {
  auto flags = std::make_shared<TimeFlags>();
  CLI::App* app = parent.add_subcommand(
      "time", "A timing study: every layer's time, on random hidden states; lists are swept");
  add_flags(*app, *flags);
  return {app, [flags] { return run_time(*flags); }, true,
          [app] {
            require_flag(*app, "--store");
            require_flag(*app, "--tokens");
          }};
}

}  // namespace stagecoach
