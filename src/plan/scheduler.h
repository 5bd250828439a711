// Decides what enters the pipeline next. Pure: events in, micro-batches out; no clocks, no ids, no
// I/O, so that the simulator can run the very same object.
//
// Prefill is cut into micro-batches so that all ranks compute at once. In decode every sequence
// waits for its own token to come round the ring, so sequences are dealt into as many groups as
// there are ranks, and each group is a micro-batch on its way.
//
// Where weights stream from disk, a pass reads all of them, whatever it computes. Work then goes in
// passes, one after the other: everything that is at hand enters together, decode and prefill, and
// nothing else until all of it has come out.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

namespace stagecoach {

struct SchedulerLimits {
  std::int64_t micro_batch_tokens = 256;  // rows of one micro-batch, at most
  int depth = 1;                          // ranks that compute at once
  int max_active = 32;                    // sequences that hold KV pages
  std::int64_t pass_tokens = 0;           // rows of one pass, at most; 0: not in passes
};

// Rows of one prefill micro-batch when `rows` are at hand. Two for each of `depth` ranks: with one
// each, filling and draining the ring would cost nearly as much as the work itself. But no slivers:
// below some tens of rows a micro-batch costs as much as one row, since it reads the same weights.
std::int64_t prefill_rows(std::int64_t rows, int depth, std::int64_t micro_batch_tokens);

struct ScheduledRun {
  std::int64_t sequence = 0;
  std::int64_t position = 0;
  std::int64_t count = 0;
  bool last_of_prompt = false;  // the logits after this run draw the next token (decode: always)
};

struct ScheduledBatch {
  std::int64_t number = 0;
  bool decode = false;         // nothing but decode steps
  std::int64_t pass = 0;       // number of its first micro-batch
  std::int64_t pass_row = 0;   // rows of the pass before this micro-batch
  std::int64_t pass_rows = 0;  // of the whole pass
  bool last_of_pass = true;
  std::vector<ScheduledRun> runs;
  std::vector<std::int64_t> admitted;  // sequences that enter with this batch
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerLimits& limits);

  // `decodes`: whether tokens are drawn after the prompt (generate) or not (score). Prompts are not
  // empty.
  void submit(std::int64_t sequence, std::int64_t prompt_tokens, bool decodes);

  // The next micro-batch that may enter now, if any.
  std::optional<ScheduledBatch> next();

  // A micro-batch has left the last rank. Decoding sequences in it have their next token, unless
  // finish() was called for them first.
  void returned(std::int64_t batch);
  void finish(std::int64_t sequence);  // end of text, or never begun; its KV pages are free

  bool idle() const;  // nothing waits, nothing is under way
  int in_flight() const { return static_cast<int>(in_flight_.size()); }

 private:
  struct Sequence {
    std::int64_t prompt = 0;
    std::int64_t position = 0;  // of the next token to enter
    bool decodes = false;
  };

  bool may_admit() const {
    return !waiting_.empty() && static_cast<int>(active_.size()) < limits_.max_active;
  }
  std::int64_t rows_to_prefill() const;
  std::optional<ScheduledBatch> next_decode(bool only_full_groups);
  std::optional<ScheduledBatch> next_prefill();
  std::optional<ScheduledBatch> next_of_pass();
  void form_pass();
  void admit(ScheduledBatch& batch);
  ScheduledRun take_prefill(std::int64_t room);
  ScheduledRun take_decode();
  ScheduledBatch launch(ScheduledBatch batch);

  SchedulerLimits limits_;
  std::int64_t next_number_ = 0;
  std::deque<std::int64_t> waiting_;     // submitted, not admitted
  std::deque<std::int64_t> prefilling_;  // admitted, part of the prompt has not entered yet
  std::deque<std::int64_t> ready_;       // has its next token, may decode
  std::map<std::int64_t, Sequence> waiting_sequences_;
  std::map<std::int64_t, Sequence> active_;
  std::map<std::int64_t, ScheduledBatch> in_flight_;
  // Rows of a prefill micro-batch, settled when prompts are admitted: shares of what is left would
  // shrink with every micro-batch, and each one reads all weights again.
  std::int64_t prefill_rows_ = 0;
  bool decoded_last_ = false;        // the last micro-batch that entered was one of decode steps
  std::deque<ScheduledBatch> pass_;  // formed, not entered yet
};

}  // namespace stagecoach
