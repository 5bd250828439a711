#include "plan/scheduler.h"

#include <algorithm>

#include "base/error.h"
#include "plan/job_shape.h"

namespace stagecoach {

std::int64_t prefill_rows(std::int64_t rows, int depth, std::int64_t micro_batch_tokens) {
  const std::int64_t parts = depth == 1 ? 1 : 2 * depth;
  const std::int64_t share = (rows + parts - 1) / parts;
  return std::min(micro_batch_tokens, std::max(share, kOneMicroBatch));
}

Scheduler::Scheduler(const SchedulerLimits& limits) : limits_(limits) {
  STAGECOACH_CHECK(limits.micro_batch_tokens > 0 && limits.depth > 0 && limits.max_active > 0);
}

void Scheduler::submit(std::int64_t sequence, std::int64_t prompt_tokens, bool decodes) {
  STAGECOACH_CHECK(prompt_tokens > 0);
  waiting_.push_back(sequence);
  waiting_sequences_[sequence] = {.prompt = prompt_tokens, .decodes = decodes};
}

std::int64_t Scheduler::rows_to_prefill() const {
  std::int64_t rows = 0;
  for (std::int64_t id : prefilling_) rows += active_.at(id).prompt - active_.at(id).position;
  return rows;
}

ScheduledBatch Scheduler::launch(ScheduledBatch batch) {
  batch.number = next_number_++;
  if (limits_.pass_tokens == 0) batch.pass = batch.number;
  decoded_last_ = batch.decode;
  in_flight_.emplace(batch.number, batch);
  return batch;
}

std::optional<ScheduledBatch> Scheduler::next_decode(bool only_full_groups) {
  const auto decoding = static_cast<std::int64_t>(active_.size() - prefilling_.size());
  const std::int64_t group = std::clamp<std::int64_t>(
      (decoding + limits_.depth - 1) / limits_.depth, 1, limits_.micro_batch_tokens);
  const auto ready = static_cast<std::int64_t>(ready_.size());
  if (ready == 0 || (only_full_groups && ready < group)) return std::nullopt;
  ScheduledBatch batch;
  batch.decode = true;
  while (!ready_.empty() && static_cast<std::int64_t>(batch.runs.size()) < group) {
    batch.runs.push_back(take_decode());
  }
  return launch(std::move(batch));
}

ScheduledRun Scheduler::take_decode() {
  const std::int64_t id = ready_.front();
  ready_.pop_front();
  return {
      .sequence = id, .position = active_.at(id).position++, .count = 1, .last_of_prompt = true};
}

void Scheduler::admit(ScheduledBatch& batch) {
  while (may_admit()) {
    const std::int64_t id = waiting_.front();
    waiting_.pop_front();
    active_.insert(waiting_sequences_.extract(id));
    prefilling_.push_back(id);
    batch.admitted.push_back(id);
  }
}

// Up to `room` rows of the prompt that is first in line.
ScheduledRun Scheduler::take_prefill(std::int64_t room) {
  const std::int64_t id = prefilling_.front();
  Sequence& sequence = active_.at(id);
  const std::int64_t position = sequence.position;
  const std::int64_t count = std::min(room, sequence.prompt - position);
  const bool last = position + count == sequence.prompt;
  sequence.position += count;
  if (last) prefilling_.pop_front();
  return {.sequence = id, .position = position, .count = count, .last_of_prompt = last};
}

std::optional<ScheduledBatch> Scheduler::next_prefill() {
  ScheduledBatch batch;
  admit(batch);
  if (prefilling_.empty()) return std::nullopt;
  if (!batch.admitted.empty())
    prefill_rows_ = prefill_rows(rows_to_prefill(), limits_.depth, limits_.micro_batch_tokens);
  for (std::int64_t room = prefill_rows_; room > 0 && !prefilling_.empty();) {
    batch.runs.push_back(take_prefill(room));
    room -= batch.runs.back().count;
  }
  return launch(std::move(batch));
}

// Everything that is at hand, as micro-batches of nearly equal size.
void Scheduler::form_pass() {
  ScheduledBatch first;
  admit(first);
  const auto decoding = static_cast<std::int64_t>(ready_.size());
  const std::int64_t rows = std::min(decoding + rows_to_prefill(), limits_.pass_tokens);
  if (rows == 0) return;
  const std::int64_t per_batch = prefill_rows(rows, limits_.depth, limits_.micro_batch_tokens);
  const std::int64_t batches = (rows + per_batch - 1) / per_batch;
  for (std::int64_t i = 0, row = 0; i < batches; ++i) {
    ScheduledBatch batch = i == 0 ? std::move(first) : ScheduledBatch{};
    batch.pass = next_number_;
    batch.pass_row = row;
    batch.pass_rows = rows;
    batch.last_of_pass = i + 1 == batches;
    batch.decode = true;
    const std::int64_t end = rows * (i + 1) / batches;
    while (row < end) {
      const bool decode = !ready_.empty();
      batch.runs.push_back(decode ? take_decode() : take_prefill(end - row));
      batch.decode = batch.decode && decode;
      row += batch.runs.back().count;
    }
    pass_.push_back(std::move(batch));
  }
}

std::optional<ScheduledBatch> Scheduler::next_of_pass() {
  if (pass_.empty() && in_flight_.empty()) form_pass();
  if (pass_.empty()) return std::nullopt;
  ScheduledBatch batch = std::move(pass_.front());
  pass_.pop_front();
  return launch(std::move(batch));
}

std::optional<ScheduledBatch> Scheduler::next() {
  if (limits_.pass_tokens > 0) return next_of_pass();
  // One micro-batch computing on every rank and one more on its way: more would only queue.
  if (in_flight() > limits_.depth) return std::nullopt;
  // Prompts and whole groups that decode take turns while there are both: who decodes is not kept
  // waiting by long prompts, nor do prompts wait until all who decode are done. Less than a group
  // goes where a rank would have nothing to do: elsewhere it waits for others to join it, or two
  // small groups would read all weights twice, step after step.
  if (decoded_last_)
    if (auto batch = next_prefill()) return batch;
  if (auto batch = next_decode(true)) return batch;
  if (auto batch = next_prefill()) return batch;
  if (in_flight() >= limits_.depth) return std::nullopt;
  return next_decode(false);
}

void Scheduler::returned(std::int64_t number) {
  const auto it = in_flight_.find(number);
  STAGECOACH_CHECK(it != in_flight_.end());
  for (const ScheduledRun& run : it->second.runs) {
    if (!run.last_of_prompt) continue;
    const auto active = active_.find(run.sequence);
    if (active != active_.end() && active->second.decodes) ready_.push_back(run.sequence);
  }
  in_flight_.erase(it);
}

void Scheduler::finish(std::int64_t sequence) {
  active_.erase(sequence);
  waiting_sequences_.erase(sequence);
  std::erase(waiting_, sequence);
  std::erase(ready_, sequence);
  std::erase(prefilling_, sequence);
}

bool Scheduler::idle() const {
  return waiting_.empty() && active_.empty() && in_flight_.empty() && pass_.empty();
}

}  // namespace stagecoach
