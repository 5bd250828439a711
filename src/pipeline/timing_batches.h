// Random work of a stated shape, pass after pass: the BatchSource of `time`.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "pipeline/rank_loop.h"

namespace stagecoach {

struct TimingStudy {
  bool decode = false;
  std::int64_t tokens = 0;  // prefill: of each sequence; decode: context before the step
  std::int64_t batch = 1;   // sequences
  std::int64_t warmup = 1, repeat = 5;
  std::int64_t micro_batch_tokens = 256;
  int depth = 1;      // ranks
  bool embed = true;  // false: random hidden states enter in place of token ids
  std::int64_t vocab_size = 1;
  bool in_passes = false;  // weights stream: everything of a pass enters together
};

// Passes are numbered from 0; the fill of a decode study's context and the warm-up have negative
// numbers. A pass starts when the one before has returned whole, so that its wall time is its own.
class TimingBatches : public BatchSource {
 public:
  explicit TimingBatches(const TimingStudy& study);

  std::optional<MicroBatch> next() override;
  void returned(const BatchResult& result) override;
  bool done() const override;
  bool fill_hidden(const MicroBatch& batch, std::span<float> hidden) override;

  // Wall time of each counted pass, from its first micro-batch in to its last one out.
  const std::vector<double>& pass_ms() const { return pass_ms_; }
  std::int64_t repeat() const { return study_.repeat; }

 private:
  void begin_pass();
  void queue_prefill(Phase phase);
  void queue_decode();
  void push(std::vector<TokenRun> runs, Phase phase);
  void place_in_pass(bool forget_kv);

  TimingStudy study_;
  std::int64_t pass_;
  std::int64_t next_number_ = 0;
  std::deque<MicroBatch> queued_;
  std::int64_t in_flight_ = 0;
  bool admitted_ = false;
  std::int64_t pass_begin_ns_ = 0;  // 0: its first micro-batch has not entered yet
  std::vector<double> pass_ms_;
};

// One study after the other.
class TimingStudies : public BatchSource {
 public:
  using Progress = std::function<void(std::int64_t passes_done, std::int64_t passes)>;
  explicit TimingStudies(const std::vector<TimingStudy>& studies, Progress progress = {});

  std::optional<MicroBatch> next() override { return current().next(); }
  void returned(const BatchResult& result) override;
  bool done() const override { return current_ == studies_.size(); }
  bool fill_hidden(const MicroBatch& batch, std::span<float> hidden) override {
    return current().fill_hidden(batch, hidden);
  }

  const std::vector<double>& pass_ms(std::size_t study) const { return studies_[study].pass_ms(); }

 private:
  TimingBatches& current() { return studies_[current_]; }
  std::vector<TimingBatches> studies_;
  std::size_t current_ = 0;
  Progress progress_;
};

}  // namespace stagecoach
