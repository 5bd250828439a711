#include "pipeline/text_batches.h"

#include <utility>

#include "base/error.h"

namespace stagecoach {

TextBatches::TextBatches(const SchedulerLimits& limits, std::int64_t context,
                         std::vector<TextRequest> requests, TextEvents events,
                         const ResumePoint& resume)
    : scheduler_(limits), context_(context), events_(std::move(events)), resume_(resume) {
  for (TextRequest& request : requests) {
    const SequenceId id = request.sequence;
    const std::size_t length = request.tokens.size();
    const std::size_t prompt = length - static_cast<std::size_t>(request.drawn);
    STAGECOACH_CHECK(length > 0 && static_cast<std::int64_t>(length) <= context);
    scheduler_.submit(id, static_cast<std::int64_t>(length), !request.score);
    sequences_[id] = {std::move(request), prompt};
  }
}

TokenRun TextBatches::make_run(const ScheduledRun& scheduled) const {
  const TextRequest& request = sequences_.at(scheduled.sequence).request;
  STAGECOACH_CHECK(scheduled.position + scheduled.count <=
                   static_cast<std::int64_t>(request.tokens.size()));
  const auto begin = request.tokens.begin() + scheduled.position;
  TokenRun run{.sequence = scheduled.sequence,
               .position = scheduled.position,
               .ids = {begin, begin + scheduled.count},
               .targets = {},
               .sample = false};
  if (request.score) {
    run.targets.assign(static_cast<std::size_t>(scheduled.count), -1);
    for (std::int64_t i = 0; i < scheduled.count; ++i) {
      const auto next = static_cast<std::size_t>(scheduled.position + i + 1);
      if (next < request.tokens.size())
        run.targets[static_cast<std::size_t>(i)] = request.tokens[next];
    }
  } else {
    run.sample = scheduled.last_of_prompt;
  }
  return run;
}

std::optional<MicroBatch> TextBatches::next() {
  auto scheduled = scheduler_.next();
  if (!scheduled) return std::nullopt;
  MicroBatch batch;
  label(*scheduled, batch);
  batch.controls = std::exchange(drops_, {});
  for (SequenceId id : scheduled->admitted) {
    const Sequence& sequence = sequences_.at(id);
    batch.controls.push_back({.kind = Control::Kind::kAdmit,
                              .sequence = id,
                              .prompt_length = static_cast<std::int64_t>(sequence.prompt_length),
                              .sampling = sequence.request.sampling});
    if (events_.admitted) events_.admitted(id);
  }
  for (const ScheduledRun& run : scheduled->runs) {
    batch.runs.push_back(make_run(run));
    const Sequence& sequence = sequences_.at(run.sequence);
    if (sequence.request.score && run.last_of_prompt)
      score_ends_[scheduled->number].push_back(run.sequence);
  }
  return batch;
}

void TextBatches::label(const ScheduledBatch& scheduled, MicroBatch& batch) {
  const bool in_passes = scheduled.pass_rows > 0;
  // A pass in the timing tables, where the job goes in none: a decode micro-batch, or all prefill
  // since prompts were last admitted.
  if (in_passes || !scheduled.admitted.empty()) prefill_pass_ = scheduled.pass;
  batch.label = {.micro_batch = scheduled.number,
                 .pass = scheduled.decode && !in_passes ? scheduled.number : prefill_pass_,
                 .phase = scheduled.decode ? Phase::kDecode : Phase::kPrefill};
  if (!in_passes) return;
  const bool first = scheduled.pass == 0;
  batch.pass = {.row = scheduled.pass_row,
                .rows = scheduled.pass_rows,
                .last = scheduled.last_of_pass,
                .forget_kv = resume_.forget_kv,
                .keep = first,
                .resume = first ? resume_.window : 0};
}

void TextBatches::finish(SequenceId id) {
  scheduler_.finish(id);
  drops_.push_back(
      {.kind = Control::Kind::kDrop, .sequence = id, .prompt_length = 0, .sampling = {}});
  sequences_.erase(id);
  if (events_.finished) events_.finished(id);
}

void TextBatches::returned(const BatchResult& result) {
  for (const BatchResult::LogProbs& values : result.log_probs)
    if (events_.log_probs) events_.log_probs(values.sequence, values.position, values.values);
  for (const auto& [id, token] : result.tokens) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end())
      throw data_error(
          fmt::format("a token was drawn for sequence {}, which is not under way", id));
    Sequence& sequence = found->second;
    sequence.request.tokens.push_back(token);
    const std::size_t drawn = sequence.request.tokens.size() - sequence.prompt_length;
    const bool wanted = events_.token(id, token);
    const bool room = static_cast<std::int64_t>(sequence.request.tokens.size()) <= context_ &&
                      static_cast<std::int64_t>(drawn) < sequence.request.max_new_tokens;
    if (!wanted || !room) finish(id);
  }
  if (events_.returned && !result.tokens.empty()) events_.returned();
  scheduler_.returned(result.micro_batch);
  if (const auto ended = score_ends_.extract(result.micro_batch))
    for (SequenceId id : ended.mapped()) finish(id);
}

}  // namespace stagecoach
