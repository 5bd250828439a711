#include "pipeline/timing_batches.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "plan/scheduler.h"

namespace stagecoach {
namespace {

// Any values do: time does not depend on them, as long as they are ordinary numbers.
std::uint32_t scramble(std::uint64_t n) {
  n *= 0x9e3779b97f4a7c15u;
  n ^= n >> 29;
  return static_cast<std::uint32_t>((n * 0xbf58476d1ce4e5b9u) >> 32);
}

}  // namespace

TimingBatches::TimingBatches(const TimingStudy& study)
    : study_(study), pass_(-study.warmup - (study.decode ? 1 : 0)) {
  STAGECOACH_CHECK(study.tokens >= 1 && study.batch >= 1 && study.repeat >= 1 &&
                   study.micro_batch_tokens >= 1);
  begin_pass();
}

void TimingBatches::begin_pass() {
  const bool fills_context = study_.decode && pass_ == -study_.warmup - 1;
  if (fills_context) {
    queue_prefill(Phase::kNone);
  } else if (study_.decode) {
    queue_decode();
  } else {
    queue_prefill(Phase::kPrefill);
  }
  if (study_.in_passes) place_in_pass(!study_.decode);
  pass_begin_ns_ = 0;
}

void TimingBatches::place_in_pass(bool forget_kv) {
  std::int64_t rows = 0, row = 0;
  for (const MicroBatch& batch : queued_) rows += total_rows(batch.runs);
  for (MicroBatch& batch : queued_) {
    batch.pass = {
        .row = row, .rows = rows, .last = &batch == &queued_.back(), .forget_kv = forget_kv};
    row += total_rows(batch.runs);
  }
}

void TimingBatches::push(std::vector<TokenRun> runs, Phase phase) {
  MicroBatch batch;
  batch.label = {.micro_batch = next_number_++, .pass = pass_, .phase = phase};
  batch.runs = std::move(runs);
  if (!std::exchange(admitted_, true)) {
    SamplingParams greedy;
    greedy.greedy = true;
    for (SequenceId id = 0; id < study_.batch; ++id)
      batch.controls.push_back({.kind = Control::Kind::kAdmit,
                                .sequence = id,
                                .prompt_length = study_.tokens,
                                .sampling = greedy});
  }
  queued_.push_back(std::move(batch));
}

void TimingBatches::queue_prefill(Phase phase) {
  const std::int64_t micro_batch =
      prefill_rows(study_.batch * study_.tokens, study_.depth, study_.micro_batch_tokens);
  std::vector<TokenRun> runs;
  std::int64_t rows = 0;
  const auto flush = [&] {
    if (!runs.empty()) push(std::exchange(runs, {}), phase);
    rows = 0;
  };
  for (SequenceId id = 0; id < study_.batch; ++id) {
    for (std::int64_t position = 0; position < study_.tokens;) {
      const std::int64_t count = std::min(study_.tokens - position, micro_batch - rows);
      TokenRun run{.sequence = id,
                   .position = position,
                   .ids = {},
                   .targets = {},
                   .sample = position + count == study_.tokens};
      for (std::int64_t i = 0; i < count; ++i)
        run.ids.push_back(static_cast<TokenId>(
            scramble(static_cast<std::uint64_t>(id * study_.tokens + position + i)) %
            static_cast<std::uint64_t>(study_.vocab_size)));
      runs.push_back(std::move(run));
      position += count;
      rows += count;
      if (rows == micro_batch) flush();
    }
  }
  flush();
}

void TimingBatches::queue_decode() {
  // As generation deals sequences: one group a rank, or all of them in a pass.
  const std::int64_t group =
      study_.in_passes
          ? prefill_rows(study_.batch, study_.depth, study_.micro_batch_tokens)
          : std::min((study_.batch + study_.depth - 1) / study_.depth, study_.micro_batch_tokens);
  for (std::int64_t first = 0; first < study_.batch; first += group) {
    std::vector<TokenRun> runs;
    for (SequenceId id = first; id < std::min(first + group, study_.batch); ++id)
      runs.push_back({.sequence = id,
                      .position = study_.tokens,
                      .ids = {static_cast<TokenId>(scramble(static_cast<std::uint64_t>(id)) %
                                                   static_cast<std::uint64_t>(study_.vocab_size))},
                      .targets = {},
                      .sample = true});
    push(std::move(runs), Phase::kDecode);
  }
}

std::optional<MicroBatch> TimingBatches::next() {
  if (queued_.empty() || (!study_.in_passes && in_flight_ > study_.depth)) return std::nullopt;
  MicroBatch batch = std::move(queued_.front());
  queued_.pop_front();
  if (pass_begin_ns_ == 0) pass_begin_ns_ = now_ns();
  ++in_flight_;
  return batch;
}

void TimingBatches::returned(const BatchResult&) {
  --in_flight_;
  if (in_flight_ > 0 || !queued_.empty()) return;
  if (pass_ >= 0) pass_ms_.push_back(seconds_since(pass_begin_ns_) * 1e3);
  if (++pass_ < study_.repeat) begin_pass();
}

bool TimingBatches::done() const {
  return pass_ >= study_.repeat;
}

bool TimingBatches::fill_hidden(const MicroBatch& batch, std::span<float> hidden) {
  if (study_.embed) return false;
  const std::uint64_t base = static_cast<std::uint64_t>(batch.label.micro_batch) << 32;
  for (std::size_t i = 0; i < hidden.size(); ++i)
    hidden[i] = static_cast<float>(scramble(base + i)) * 0x1p-31f - 1.0f;  // uniform in [-1, 1)
  return true;
}

TimingStudies::TimingStudies(const std::vector<TimingStudy>& studies, Progress progress)
    : studies_(studies.begin(), studies.end()), progress_(std::move(progress)) {}

void TimingStudies::returned(const BatchResult& result) {
  current().returned(result);
  if (current().done()) ++current_;
  if (!progress_) return;
  std::int64_t done_passes = 0, passes = 0;
  for (const TimingBatches& study : studies_) {
    done_passes += static_cast<std::int64_t>(study.pass_ms().size());
    passes += study.repeat();
  }
  progress_(done_passes, passes);
}

}  // namespace stagecoach
