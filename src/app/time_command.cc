#include <memory>
#include <optional>

#include "app/command.h"
#include "app/output.h"
#include "app/run_job.h"
#include "base/dtype_names.h"
#include "base/error.h"
#include "pipeline/timing_batches.h"
#include "timeline/median.h"
#include "timeline/phase_results.h"

namespace stagecoach {
namespace {

struct TimeFlags {
  RunSettings run;
  std::int64_t tokens = 0, batch = 1, warmup = 1, repeat = 5;
  std::string phase = "prefill", layers;
};

class TimeJob {
 public:
  explicit TimeJob(const TimeFlags& flags) : flags_(flags) {
    if (flags.phase != "decode") phases_.push_back(Phase::kPrefill);
    if (flags.phase != "prefill") phases_.push_back(Phase::kDecode);
  }

  void prepare(const LayerStore& store) const {
    const ModelSpec& spec = store.manifest().spec;
    const std::int64_t positions = flags_.tokens + (phases_.back() == Phase::kDecode ? 1 : 0);
    if (positions > spec.max_position_embeddings)
      throw usage_error(
          fmt::format("--tokens {} with --phase {} needs {} positions, the model's context is {}",
                      flags_.tokens, flags_.phase, positions, spec.max_position_embeddings));
  }

  std::unique_ptr<BatchSource> make_source(const JobView& view) {
    std::vector<TimingStudy> studies;
    for (Phase phase : phases_)
      studies.push_back({.decode = phase == Phase::kDecode,
                         .tokens = flags_.tokens,
                         .batch = flags_.batch,
                         .warmup = flags_.warmup,
                         .repeat = flags_.repeat,
                         .micro_batch_tokens = view.micro_batch,
                         .depth = view.plan.ranks,
                         .embed = view.plan.layer_begin() == 0,
                         .vocab_size = view.store.manifest().spec.vocab_size});
    progress_.emplace("timing", ProgressUnit::kPasses, !flags_.run.quiet);
    auto source = std::make_unique<TimingStudies>(
        studies, [this](std::int64_t done, std::int64_t total) { progress_->update(done, total); });
    studies_ = source.get();
    return source;
  }

  void describe(const std::vector<RankTimeline>& ranks, RunInfo& info) const {
    info.work = fmt::format("{} of {} tokens, batch {}",
                            flags_.phase == "both" ? "prefill and decode" : flags_.phase,
                            flags_.tokens, flags_.batch);
    for (std::size_t i = 0; i < phases_.size(); ++i)
      info.phases.push_back(
          phase_result(ranks, phases_[i], studies_->pass_ms(i), tokens_of(phases_[i])));
  }

  void finish(const JobView& view, const std::vector<RankTimeline>& ranks) {
    progress_.reset();
    const std::vector<LayerRow> rows = layer_rows(ranks);
    if (flags_.run.json) {
      for (const LayerRow& row : rows) print(layer_row_json(row) + "\n");
    } else {
      print(format_layer_table(rows));
    }
    for (std::size_t i = 0; i < phases_.size(); ++i)
      print_summary(view, ranks, phases_[i], median(studies_->pass_ms(i)));
  }

 private:
  // Of one pass.
  std::int64_t tokens_of(Phase phase) const {
    return flags_.batch * (phase == Phase::kPrefill ? flags_.tokens : 1);
  }

  void print_summary(const JobView& view, const std::vector<RankTimeline>& ranks, Phase phase,
                     double ms) const {
    const double rate = static_cast<double>(tokens_of(phase)) / ms * 1e3;
    const double embedding_ms = median_pass_ms(ranks, SpanKind::kEmbedding, phase);
    const double head_ms = median_pass_ms(ranks, SpanKind::kHead, phase);
    const Manifest& manifest = view.store.manifest();
    if (flags_.run.json) {
      print_json_line({{"summary", true},
                       {"phase", phase_name(phase)},
                       {"tokens_per_second", rate},
                       {"ms", ms},
                       {"embedding_ms", embedding_ms},
                       {"head_ms", head_ms},
                       {"ranks", view.plan.ranks},
                       {"weights", dtype_name(manifest.weights)},
                       {"isa", view.isa}});
      return;
    }
    print(
        fmt::format("{}: {:.4g} ms a pass, {:.4g} tokens/s; embedding {:.3g} ms, head {:.3g} ms; "
                    "{} ranks, {} weights, {}\n",
                    phase_name(phase), ms, rate, embedding_ms, head_ms, view.plan.ranks,
                    dtype_name(manifest.weights), view.isa));
    if (manifest.distinct_layers < manifest.spec.num_hidden_layers)
      print(fmt::format("note: the store's {} layers share {} slabs\n",
                        manifest.spec.num_hidden_layers, manifest.distinct_layers));
  }

  const TimeFlags& flags_;
  std::vector<Phase> phases_;
  std::optional<Progress> progress_;
  const TimingStudies* studies_ = nullptr;  // the job's source, which outlives finish()
};

}  // namespace

Command time_command(CLI::App& parent) {
  auto flags = std::make_shared<TimeFlags>();
  CLI::App* app =
      parent.add_subcommand("time", "A timing study: every layer's time, on random hidden states");
  add_run_flags(*app, flags->run);
  app->add_option("--tokens", flags->tokens,
                  "Prefill: tokens of a sequence. Decode: context before the step")
      ->check(integer_in(1, 1 << 24));
  app->add_option("--phase", flags->phase, "What to time")
      ->capture_default_str()
      ->check(CLI::IsMember({"prefill", "decode", "both"}));
  app->add_option("--batch", flags->batch, "Sequences")
      ->capture_default_str()
      ->check(integer_in(1, 65536));
  app->add_option("--warmup", flags->warmup, "Passes that are not counted, first")
      ->capture_default_str()
      ->check(integer_in(0, 1000000));
  app->add_option("--repeat", flags->repeat,
                  "Passes that are counted; figures are medians over them")
      ->capture_default_str()
      ->check(integer_in(1, 1000000));
  app->add_option("--layers", flags->layers, "Only these layers, A:B, 0-based and half-open")
      ->type_name("A:B");
  return {
      app,
      [app, flags] {
        require_flag(*app, "--store");
        require_flag(*app, "--tokens");
        TimeJob job(*flags);
        return run_job(
            flags->run,
            {.layers = flags->layers,
             .command = "time",
             .describe = [&](const JobView&, const std::vector<RankTimeline>& ranks,
                             RunInfo& info) { job.describe(ranks, info); },
             .prepare = [&](const LayerStore& store) { job.prepare(store); },
             .make_source = [&](const JobView& view) { return job.make_source(view); },
             .finish = [&](const JobView& view,
                           const std::vector<RankTimeline>& ranks) { job.finish(view, ranks); }});
      },
      true};
}

}  // namespace stagecoach
