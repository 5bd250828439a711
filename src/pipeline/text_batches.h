// Prompts and texts as micro-batches: the BatchSource of generate and score.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "pipeline/rank_loop.h"
#include "plan/scheduler.h"

namespace stagecoach {

struct TextRequest {
  SequenceId sequence = 0;
  std::vector<TokenId> tokens;      // prompt, or the text to score; not empty
  bool score = false;               // log-probabilities of the text itself; nothing is drawn
  std::int64_t max_new_tokens = 0;  // generate: at least 1, `drawn` ones included
  SamplingParams sampling;
  std::int64_t drawn = 0;  // of tokens, the last ones: drawn by a run that was interrupted
};

// How a job that goes in passes begins and ends.
struct ResumePoint {
  std::int64_t layers = 0;  // of the first pass, which are done
  std::int32_t window = 0;  // the first one of it that computes
  bool forget_kv = false;   // no pass reads the keys of one before it
};

struct TextEvents {
  std::function<void(SequenceId)> admitted;
  // A token was drawn; false ends the sequence.
  std::function<bool(SequenceId, TokenId)> token;
  // ln P of the tokens at positions `position` + 1, + 2, … of a scored text.
  std::function<void(SequenceId, std::int64_t position, std::span<const double>)> log_probs;
  std::function<void()> returned;            // the tokens of a micro-batch have been told
  std::function<void(SequenceId)> finished;  // after its last token, or its last log-probability
};

class TextBatches : public BatchSource {
 public:
  // Tokens beyond `context` positions are never fed: a sequence that fills it ends.
  TextBatches(const SchedulerLimits& limits, std::int64_t context,
              std::vector<TextRequest> requests, TextEvents events, const ResumePoint& resume = {});

  std::optional<MicroBatch> next() override;
  void returned(const BatchResult& result) override;
  bool done() const override { return scheduler_.idle(); }

 private:
  struct Sequence {
    TextRequest request;
    std::size_t prompt_length = 0;  // request.tokens grows while tokens are drawn
  };
  TokenRun make_run(const ScheduledRun& scheduled) const;
  void finish(SequenceId id);
  void label(const ScheduledBatch& scheduled, MicroBatch& batch);

  Scheduler scheduler_;
  std::int64_t context_;
  TextEvents events_;
  ResumePoint resume_;
  std::map<SequenceId, Sequence> sequences_;
  std::vector<Control> drops_;  // go out with the next micro-batch
  std::int64_t prefill_pass_ = 0;
  // Scored sequences end when their last micro-batch returns.
  std::map<std::int64_t, std::vector<SequenceId>> score_ends_;
};

}  // namespace stagecoach
