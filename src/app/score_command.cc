#include <cmath>
#include <cstdio>
#include <memory>
#include <optional>

#include "app/command.h"
#include "app/output.h"
#include "app/run_job.h"
#include "app/text_input.h"
#include "base/error.h"
#include "base/hash.h"
#include "pipeline/text_batches.h"
#include "timeline/phase_results.h"

namespace stagecoach {
namespace {

struct ScoreFlags {
  RunSettings run;
  std::string text_file, ids_file;
  bool no_bos = false;
};

class ScoreJob {
 public:
  ScoreJob(const CLI::App& app, const ScoreFlags& flags) : app_(app), flags_(flags) {}

  void prepare(const LayerStore& store) {
    if (app_.count("--ids") > 0) {
      ids_ = parse_ids(read_text(flags_.ids_file), flags_.ids_file);
    } else {
      const std::string text = read_text(flags_.text_file);
      check_text_length(text, store.manifest().spec, "the text");
      ids_ = require_tokenizer(store.root())->encode(text, {.add_special_tokens = !flags_.no_bos});
    }
    check_tokens(ids_, store.manifest().spec, "the text");
    log_probs_.assign(ids_.size(), 0);
  }

  // The text goes through in one pass.
  JobShape shape() const {
    const auto rows = static_cast<std::int64_t>(ids_.size());
    const std::uint64_t work = xxh3(std::as_bytes(std::span(ids_)));
    return {.largest_pass = rows,
            .usual_pass = rows,
            .wanted_rows = rows,
            .sequences = 1,
            .positions = rows,
            .forget_kv = true,
            .passes = 1,
            .prompt_rows = rows,
            .work = work,
            .content = work};
  }

  std::unique_ptr<BatchSource> make_source(const JobView& view) {
    begin_ns_ = now_ns();
    resumed_ = view.resume.layers;
    progress_.emplace("scoring", ProgressUnit::kTokens, !flags_.run.quiet);
    TextEvents events;
    events.log_probs = [this](SequenceId, std::int64_t position, std::span<const double> values) {
      for (std::size_t i = 0; i < values.size(); ++i)
        log_probs_[static_cast<std::size_t>(position) + 1 + i] = values[i];
      progress_->update(position + static_cast<std::int64_t>(values.size()),
                        static_cast<std::int64_t>(ids_.size()));
    };
    events.finished = [this](SequenceId) {
      seconds_ = seconds_since(begin_ns_);
      progress_.reset();
    };
    std::vector<TextRequest> requests{
        {.sequence = 0, .tokens = ids_, .score = true, .max_new_tokens = 0, .sampling = {}}};
    return std::make_unique<TextBatches>(
        SchedulerLimits{view.micro_batch, view.plan.ranks, 1, view.pass_tokens},
        view.store.manifest().spec.max_position_embeddings, std::move(requests), std::move(events),
        view.resume);
  }

  void describe(const std::vector<RankTimeline>& ranks, RunInfo& info) const {
    info.work = fmt::format("log-probabilities of {} tokens", ids_.size());
    if (resumed_ > 0) info.work += fmt::format(", from layer {} on", resumed_);
    if (seconds_ > 0 && resumed_ == 0)
      info.tokens_per_second = static_cast<double>(ids_.size()) / seconds_;
    info.phases = phase_results(ranks);
  }

  void finish(const JobView& view, const std::vector<RankTimeline>& ranks) const {
    double sum = 0;
    for (std::size_t i = 1; i < log_probs_.size(); ++i) sum += log_probs_[i];
    const bool predicted = log_probs_.size() > 1;
    const double perplexity =
        predicted ? std::exp(-sum / static_cast<double>(log_probs_.size() - 1)) : std::nan("");
    if (flags_.run.json) {
      Json log_probs = Json::array({nullptr});
      for (std::size_t i = 1; i < log_probs_.size(); ++i) log_probs.push_back(log_probs_[i]);
      // JSON has no NaN: a single token predicts nothing.
      print_json_line({{"ids", ids_},
                       {"logprobs", log_probs},
                       {"perplexity", predicted ? Json(perplexity) : Json(nullptr)},
                       {"seconds", seconds_}});
    } else if (predicted) {
      print(fmt::format("{} tokens, perplexity {:.6g}, mean ln P {:.6g}\n", ids_.size(), perplexity,
                        sum / static_cast<double>(ids_.size() - 1)));
    } else {
      print("1 token: nothing to predict, no perplexity\n");
    }
    if (flags_.run.quiet) return;
    if (resumed_ > 0) {
      std::fprintf(stderr, "Took %.3f s to score %zu tokens from layer %lld on\n", seconds_,
                   ids_.size(), static_cast<long long>(resumed_));
    } else {
      std::fprintf(stderr, "Took %.3f s to score %zu tokens (%.4g tokens/s)\n", seconds_,
                   ids_.size(), static_cast<double>(ids_.size()) / seconds_);
    }
    std::fputs(run_tables(view, ranks).c_str(), stderr);
  }

 private:
  const CLI::App& app_;
  const ScoreFlags& flags_;
  std::vector<TokenId> ids_;
  std::vector<double> log_probs_;  // [i]: ln P(ids[i] | ids[0 … i-1]); [0] is unused
  std::int64_t begin_ns_ = 0;
  std::optional<Progress> progress_;
  double seconds_ = 0;
  std::int64_t resumed_ = 0;  // the layer that this run began at
};

}  // namespace

Command score_command(CLI::App& parent) {
  auto flags = std::make_shared<ScoreFlags>();
  CLI::App* app = parent.add_subcommand(
      "score", "The forward pass over a text: token log-probabilities and perplexity");
  add_run_flags(*app, flags->run);
  add_checkpoint_flag(*app, flags->run);
  app->add_option("--text", flags->text_file, "A file of text, - for stdin")->type_name("FILE");
  app->add_option("--ids", flags->ids_file, "A file of token ids separated by blanks, - for stdin")
      ->type_name("FILE");
  app->add_flag("--no-bos", flags->no_bos, "Without the tokens that the tokenizer adds");
  return {
      app,
      [app, flags] {
        ScoreJob job(*app, *flags);
        return run_job(
            flags->run,
            {.layers = {},
             .command = "score",
             .describe = [&](const JobView&, const std::vector<RankTimeline>& ranks,
                             RunInfo& info) { job.describe(ranks, info); },
             .prepare = [&](const LayerStore& store) { job.prepare(store); },
             .shape = [&](const LayerStore&) { return job.shape(); },
             .make_source = [&](const JobView& view) { return job.make_source(view); },
             .finish = [&](const JobView& view,
                           const std::vector<RankTimeline>& ranks) { job.finish(view, ranks); }});
      },
      true,
      [app] {
        require_flag(*app, "--store");
        require_exactly_one(*app, {"--text", "--ids"});
      }};
}

}  // namespace stagecoach
