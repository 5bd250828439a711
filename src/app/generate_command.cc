#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>

#include "app/command.h"
#include "app/generation.h"
#include "app/output.h"
#include "app/run_job.h"
#include "app/text_input.h"
#include "app/token_log.h"
#include "base/dtype_names.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "pipeline/text_batches.h"
#include "text/chat_template.h"
#include "timeline/phase_results.h"

namespace stagecoach {
namespace {

struct GenerateFlags {
  RunSettings run;
  std::string prompt, prompts_file, prompt_ids;
  std::vector<std::string> stops;
  std::int64_t max_new_tokens = 128;
  std::int64_t max_sequences = 32;
  std::string system;
  bool ignore_eos = false, no_bos = false, chat = false;
  SamplingParams sampling;
};

void add_flags(CLI::App& app, GenerateFlags& f) {
  add_run_flags(app, f.run);
  add_checkpoint_flag(app, f.run);
  add_checkpoint_keeps_flag(app, f.run);
  app.add_option("--prompt", f.prompt, "Text to go on from")->type_name("TEXT");
  app.add_option("--prompts", f.prompts_file, "A file with one prompt a line, - for stdin")
      ->type_name("FILE");
  app.add_option("--prompt-ids", f.prompt_ids, "Token ids to go on from, separated by blanks")
      ->type_name("IDS");
  app.add_flag("--chat", f.chat, "Each prompt is a question, put into the model's chat template");
  app.add_option("--system", f.system, "With --chat: the system message")->type_name("TEXT");
  app.add_flag("--no-bos", f.no_bos, "Without the tokens that the tokenizer adds");
  app.add_option("--max-new-tokens", f.max_new_tokens, "Tokens to generate, at most")
      ->capture_default_str()
      ->check(integer_in(1, std::int64_t{1} << 40));
  app.add_option("--min-new-tokens", f.sampling.min_new_tokens,
                 "No end of text before this many tokens")
      ->capture_default_str()
      ->check(integer_in(0, std::int64_t{1} << 40));
  app.add_flag("--ignore-eos", f.ignore_eos, "Go on after an end-of-text token");
  app.add_option("--stop", f.stops, "End before this text (repeatable)")
      ->type_name("TEXT")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--greedy", f.sampling.greedy, "Always the most probable token");
  app.add_option("--temperature", f.sampling.temperature, "Divides the logits")
      ->capture_default_str();
  app.add_option("--top-k", f.sampling.top_k, "Only the k most probable tokens; 0: off")
      ->capture_default_str()
      ->check(integer_in(0, std::int64_t{1} << 40));
  app.add_option("--top-p", f.sampling.top_p,
                 "Only the most probable tokens that reach this probability; 1: off")
      ->capture_default_str();
  app.add_option("--min-p", f.sampling.min_p,
                 "Only tokens at least this probable beside the most probable; 0: off")
      ->capture_default_str();
  app.add_option("--repetition-penalty", f.sampling.repetition_penalty,
                 "Weakens tokens already there; 1: off")
      ->capture_default_str();
  app.add_option("--seed", f.sampling.seed, "Seed of the sampler")
      ->capture_default_str()
      ->check(unsigned_integer());
  app.add_option("--max-sequences", f.max_sequences, "Prompts in the pipeline at once, at most")
      ->capture_default_str()
      ->check(integer_in(1, 65536));
}

// Rank 0's side of the job: prompts in, text out, in prompt order.
class GenerateJob {
 public:
  GenerateJob(const CLI::App& app, GenerateFlags& flags) : app_(app), flags_(flags) {}

  void prepare(const LayerStore& store) {
    read_prompts_of(store);
    if (flags_.run.checkpoint.empty()) return;
    // Passes make the folder, and see to it that the model is the same one.
    if (!flags_.run.keeps_passes()) check_writable(flags_.run.checkpoint);
    log_.emplace(flags_.run.checkpoint,
                 flags_.run.keeps_passes() ? work_hash() : work_hash_of(store.manifest()));
    replay(store.manifest().spec);
  }

  void read_prompts_of(const LayerStore& store) {
    const ModelSpec& spec = store.manifest().spec;
    for (const std::string& stop : flags_.stops)
      if (stop.empty()) throw usage_error("--stop takes a text that is not empty");
    tokenizer_ = store_tokenizer(store.root());
    const bool needs_text = flags_.chat || !flags_.stops.empty();
    if (tokenizer_ == nullptr && needs_text) require_tokenizer(store.root());
    if (flags_.chat) chat_ = store_chat_template(store.root());
    flags_.sampling.eos_token_ids = end_of_text(spec);
    flags_.sampling.validate();
    const GenerationRules rules{flags_.stops, flags_.sampling.eos_token_ids, flags_.ignore_eos};
    if (app_.count("--prompt-ids") > 0) {
      std::vector<TokenId> ids = parse_ids(flags_.prompt_ids, "--prompt-ids");
      check_tokens(ids, spec, "--prompt-ids");
      std::optional<std::string> text;
      if (tokenizer_ != nullptr) text = replace_invalid_utf8(tokenizer_->decode_bytes(ids, false));
      generations_.emplace_back(text, std::move(ids), tokenizer_.get(), rules);
      return;
    }
    if (tokenizer_ == nullptr) tokenizer_ = require_tokenizer(store.root());
    const bool from_file = app_.count("--prompts") > 0;
    const std::vector<std::string> prompts =
        from_file ? read_prompts(flags_.prompts_file) : std::vector{flags_.prompt};
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      const std::string what =
          from_file ? fmt::format("prompt {} of {}", i + 1, flags_.prompts_file) : "the prompt";
      if (!is_valid_utf8(prompts[i])) throw data_error(what + " is not valid UTF-8");
      check_text_length(prompts[i], spec, what);
      std::vector<TokenId> ids = encode(prompts[i]);
      check_tokens(ids, spec, what);
      generations_.emplace_back(prompts[i], std::move(ids), tokenizer_.get(), rules);
    }
  }

  JobShape shape(const LayerStore& store) const {
    const ModelSpec& spec = store.manifest().spec;
    JobShape shape;
    shape.sequences =
        std::min(flags_.max_sequences, static_cast<std::int64_t>(generations_.size()));
    shape.usual_pass = shape.wanted_rows = shape.sequences;
    std::vector<std::int64_t> rows;
    StreamingHash content;
    for (const Generation& generation : generations_) {
      const std::vector<TokenId> tokens = generation.all_ids();
      if (!generation.finished()) rows.push_back(static_cast<std::int64_t>(tokens.size()));
      shape.positions = std::max(
          shape.positions, std::min(static_cast<std::int64_t>(generation.prompt_ids().size()) +
                                        flags_.max_new_tokens,
                                    spec.max_position_embeddings));
      content.update(as_bytes(fmt::format("{}:", tokens.size())));
      content.update(std::as_bytes(std::span(tokens)));
    }
    shape.prompt_rows = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    const auto left = static_cast<std::int64_t>(rows.size());
    shape.steps = (left + shape.sequences - 1) / shape.sequences * flags_.max_new_tokens;
    // The longest prompts may come at once.
    std::sort(rows.rbegin(), rows.rend());
    rows.resize(std::min(rows.size(), static_cast<std::size_t>(shape.sequences)));
    const std::int64_t most = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
    shape.largest_pass =
        std::max(shape.sequences, std::min(most, affordable_pass(spec.hidden_size)));
    shape.work = work_hash();
    shape.content = content.digest();
    return shape;
  }

  std::unique_ptr<BatchSource> make_source(const JobView& view) {
    std::vector<TextRequest> requests;
    for (std::size_t i = 0; i < generations_.size(); ++i) {
      const Generation& generation = generations_[i];
      if (generation.finished()) continue;  // by a run before this one
      requests.push_back({.sequence = static_cast<SequenceId>(i),
                          .tokens = generation.all_ids(),
                          .score = false,
                          .max_new_tokens = flags_.max_new_tokens,
                          .sampling = flags_.sampling,
                          .drawn = static_cast<std::int64_t>(generation.ids().size())});
    }
    const TextEvents events{
        .admitted = [this](SequenceId id) { generations_[static_cast<std::size_t>(id)].admit(); },
        .token =
            [this](SequenceId id, TokenId token) {
              return take(generations_[static_cast<std::size_t>(id)], token);
            },
        .log_probs = {},
        .returned =
            [this] {
              if (log_) save_tokens();
            },
        .finished =
            [this](SequenceId id) { finish_sequence(generations_[static_cast<std::size_t>(id)]); }};
    begin_ns_ = now_ns();
    if (replayed_ > 0)
      spdlog::info("{} tokens were drawn before, from {}", replayed_, flags_.run.checkpoint);
    for (Generation& generation : generations_)
      if (streams()) print(generation.text() + (generation.finished() ? "\n" : ""));
    print_finished();
    // Streamed text is its own progress.
    progress_.emplace("generating", ProgressUnit::kTokens, !streams() && !flags_.run.quiet);
    return std::make_unique<TextBatches>(
        SchedulerLimits{view.micro_batch, view.plan.ranks, static_cast<int>(flags_.max_sequences),
                        view.pass_tokens},
        view.store.manifest().spec.max_position_embeddings, std::move(requests), events,
        view.resume);
  }

  void describe(const std::vector<RankTimeline>& ranks, RunInfo& info) const {
    info.work = fmt::format("{} {}, {} tokens generated", generations_.size(),
                            generations_.size() == 1 ? "prompt" : "prompts", drawn_);
    if (seconds_ > 0) info.tokens_per_second = static_cast<double>(drawn_) / seconds_;
    info.phases = phase_results(ranks);
  }

  void finish(const JobView& view, const std::vector<RankTimeline>& ranks) {
    progress_.reset();
    if (flags_.run.quiet) return;
    std::fprintf(stderr, "Took %.3f s to generate %lld tokens (%.4g tokens/s)\n", seconds_,
                 static_cast<long long>(drawn_),
                 seconds_ > 0 ? static_cast<double>(drawn_) / seconds_ : 0.0);
    std::fputs(run_tables(view, ranks).c_str(), stderr);
  }

 private:
  // Everything that decides which tokens are drawn.
  std::uint64_t work_hash() const {
    StreamingHash hash;
    const SamplingParams& s = flags_.sampling;
    hash.update(as_bytes(fmt::format("{} {} {} {} {} {} {} {} {} {}:", s.greedy, s.temperature,
                                     s.top_k, s.top_p, s.min_p, s.repetition_penalty, s.seed,
                                     s.min_new_tokens, flags_.max_new_tokens, flags_.ignore_eos)));
    hash.update(as_bytes(fmt::format("{}:", flags_.max_sequences)));  // how passes are cut
    for (const std::string& stop : flags_.stops)
      hash.update(as_bytes(fmt::format("{}:{}", stop.size(), stop)));
    for (const std::int64_t id : s.eos_token_ids) hash.update(as_bytes(fmt::format("{} ", id)));
    for (const Generation& generation : generations_) {
      hash.update(as_bytes(fmt::format("{}:", generation.prompt_ids().size())));
      hash.update(std::as_bytes(std::span(generation.prompt_ids())));
    }
    return hash.digest();
  }

  // The same of a model: whatever the plan, its tokens are these.
  std::uint64_t work_hash_of(const Manifest& manifest) const {
    StreamingHash hash;
    hash.update(
        as_bytes(fmt::format("{} {} {} {} {} {} {}:", work_hash(), manifest.name, manifest.version,
                             dtype_name(manifest.weights), to_json(manifest.spec).dump(),
                             flags_.run.kv, flags_.run.activations)));
    return hash.digest();
  }

  // Takes over what an interrupted run has drawn.
  void replay(const ModelSpec& spec) {
    const auto tokens = log_->load(generations_.size());
    if (!tokens) return;
    for (std::size_t i = 0; i < generations_.size(); ++i) {
      Generation& generation = generations_[i];
      check_drawn((*tokens)[i], spec);
      generation.admit();
      for (const TokenId id : (*tokens)[i]) generation.replay(id);
      const auto drawn = static_cast<std::int64_t>(generation.ids().size());
      const auto length = static_cast<std::int64_t>(generation.all_ids().size());
      replayed_ += drawn;
      if (generation.ended() || drawn >= flags_.max_new_tokens ||
          length > spec.max_position_embeddings)
        generation.finish();
    }
  }
  void check_drawn(const std::vector<TokenId>& tokens, const ModelSpec& spec) const {
    if (static_cast<std::int64_t>(tokens.size()) > flags_.max_new_tokens)
      throw data_error(fmt::format("{}/tokens.json: {} tokens of a prompt, expected {} at most",
                                   flags_.run.checkpoint, tokens.size(), flags_.max_new_tokens));
    for (const TokenId id : tokens)
      if (id >= spec.vocab_size)
        throw data_error(fmt::format("{}/tokens.json: token {} is not in the vocabulary of {}",
                                     flags_.run.checkpoint, id, spec.vocab_size));
  }
  void save_tokens() {
    // Passes go on exactly where the log ends. Without them a log that is a little behind costs a
    // few tokens, and one for every token would cost a write to disk each.
    constexpr double kInterval = 0.5;  // seconds
    if (!flags_.run.keeps_passes() && saved_ns_ > 0 && seconds_since(saved_ns_) < kInterval) return;
    saved_ns_ = now_ns();
    std::vector<const std::vector<TokenId>*> tokens;
    for (const Generation& generation : generations_) tokens.push_back(&generation.ids());
    log_->save(tokens);
  }

  // A chat ends with its turn, too; ids that the model does not draw would end nothing.
  std::vector<std::int64_t> end_of_text(const ModelSpec& spec) const {
    std::vector<std::int64_t> ids = spec.eos_token_ids;
    if (!chat_) return ids;
    const TokenId turn_end = chat_->turn_end(*tokenizer_);
    check_tokens({turn_end}, spec, "the end of a turn in the model's chat template");
    if (std::find(ids.begin(), ids.end(), turn_end) == ids.end()) ids.push_back(turn_end);
    return ids;
  }

  std::vector<TokenId> encode(const std::string& prompt) const {
    if (!chat_) return tokenizer_->encode(prompt, {.add_special_tokens = !flags_.no_bos});
    ChatPrompt chat{.system = {}, .user = prompt};
    if (app_.count("--system") > 0) chat.system = flags_.system;
    return chat_->encode(*tokenizer_, chat);
  }

  // One prompt from the command line; prompts from a file are blocks with a head, even a single
  // one.
  bool streams() const { return app_.count("--prompts") == 0 && !flags_.run.json; }

  bool take(Generation& generation, TokenId token) {
    const std::string text = generation.push(token);
    progress_->update(++drawn_,
                      static_cast<std::int64_t>(generations_.size()) * flags_.max_new_tokens);
    if (streams()) print(text);
    return !generation.ended();
  }

  void finish_sequence(Generation& generation) {
    const std::string rest = generation.finish();
    if (streams()) print(rest + "\n");
    seconds_ = seconds_since(begin_ns_);
    print_finished();
  }

  void print_finished() {
    // In prompt order: one that ends early waits for those before it.
    for (; !streams() && printed_ < generations_.size() && generations_[printed_].finished();
         ++printed_) {
      const Generation& next = generations_[printed_];
      if (flags_.run.json) {
        print_json_line(next.to_json());
      } else {
        print(fmt::format("=== {}: {}\n{}\n\n", printed_ + 1, *next.prompt(), next.text()));
      }
    }
  }

  const CLI::App& app_;
  GenerateFlags& flags_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::optional<ChatTemplate> chat_;  // with --chat
  std::vector<Generation> generations_;
  std::optional<TokenLog> log_;  // with --checkpoint
  std::int64_t saved_ns_ = 0;    // when it was written last
  std::size_t printed_ = 0;
  std::int64_t drawn_ = 0;     // tokens, of all prompts
  std::int64_t replayed_ = 0;  // those that a run before has drawn
  std::optional<Progress> progress_;
  std::int64_t begin_ns_ = 0;
  double seconds_ = 0;
};

void check_chat_flags(const CLI::App& app, const GenerateFlags& flags) {
  const bool system = app.count("--system") > 0;
  if (system && !flags.chat) throw usage_error("--system needs --chat");
  if (system && flags.system.empty())
    throw usage_error("--system takes a text that is not empty",
                      "leave it out for the system message of the model's own template");
  if (system && !is_valid_utf8(flags.system)) throw data_error("--system is not valid UTF-8");
  if (!flags.chat) return;
  if (app.count("--prompt-ids") > 0)
    throw usage_error("--chat takes text: --prompt or --prompts, not --prompt-ids");
  if (flags.no_bos)
    throw usage_error("--chat and --no-bos exclude each other: the template says where BOS is");
}

}  // namespace

Command generate_command(CLI::App& parent) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* app =
      parent.add_subcommand("generate", "Go on from prompts (under mpirun: over several machines)");
  add_flags(*app, *flags);
  return {
      app,
      [app, flags] {
        GenerateJob job(*app, *flags);
        return run_job(
            flags->run,
            {.layers = {},
             .command = "generate",
             .describe = [&](const JobView&, const std::vector<RankTimeline>& ranks,
                             RunInfo& info) { job.describe(ranks, info); },
             .prepare = [&](const LayerStore& store) { job.prepare(store); },
             .shape = [&](const LayerStore& store) { return job.shape(store); },
             .make_source = [&](const JobView& view) { return job.make_source(view); },
             .finish = [&](const JobView& view,
                           const std::vector<RankTimeline>& ranks) { job.finish(view, ranks); }});
      },
      true,
      [app, flags] {
        require_flag(*app, "--store");
        require_exactly_one(*app, {"--prompt", "--prompts", "--prompt-ids"});
        check_chat_flags(*app, *flags);
        flags->sampling.validate();
      }};
}

}  // namespace stagecoach
