#include "plan/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace stagecoach {

std::int64_t prefill_rows(std::int64_t rows, int depth, std::int64_t micro_batch_tokens) {
  constexpr std::int64_t kFewestRows = 32;
  const std::int64_t parts = depth == 1 ? 1 : 2 * depth;
  const std::int64_t share = (rows + parts - 1) / parts;
  return std::min(micro_batch_tokens, std::max(share, kFewestRows));
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
  in_flight_.emplace(batch.number, batch);
  return batch;
}

std::optional<ScheduledBatch> Scheduler::next_decode(bool only_full_groups) {
  const auto decoding = static_cast<std::int64_t>(active_.size() - prefilling_.size());
  const std::int64_t group = std::clamp<std::int64_t>(
      (decoding + limits_.depth - 1) / limits_.depth, 1, limits_.micro_batch_tokens);
  const auto ready = static_cast<std::int64_t>(ready_.size());
  if (ready == 0 || (only_full_groups && ready < group)) return std::nullopt;
  ScheduledBatch batch{.number = 0, .decode = true, .runs = {}, .admitted = {}};
  while (!ready_.empty() && static_cast<std::int64_t>(batch.runs.size()) < group) {
    const std::int64_t id = ready_.front();
    ready_.pop_front();
    batch.runs.push_back({.sequence = id,
                          .position = active_.at(id).position++,
                          .count = 1,
                          .last_of_prompt = true});
  }
  return launch(std::move(batch));
}

std::optional<ScheduledBatch> Scheduler::next_prefill() {
  ScheduledBatch batch;
  while (may_admit()) {
    const std::int64_t id = waiting_.front();
    waiting_.pop_front();
    active_.insert(waiting_sequences_.extract(id));
    prefilling_.push_back(id);
    batch.admitted.push_back(id);
  }
  if (prefilling_.empty()) return std::nullopt;
  if (!batch.admitted.empty())
    prefill_rows_ = prefill_rows(rows_to_prefill(), limits_.depth, limits_.micro_batch_tokens);
  std::int64_t room = prefill_rows_;
  while (room > 0 && !prefilling_.empty()) {
    const std::int64_t id = prefilling_.front();
    Sequence& sequence = active_.at(id);
    const std::int64_t count = std::min(room, sequence.prompt - sequence.position);
    const bool last = sequence.position + count == sequence.prompt;
    batch.runs.push_back(
        {.sequence = id, .position = sequence.position, .count = count, .last_of_prompt = last});
    sequence.position += count;
    room -= count;
    if (last) prefilling_.pop_front();
  }
  return launch(std::move(batch));
}

std::optional<ScheduledBatch> Scheduler::next() {
  // One micro-batch computing on every rank and one more on its way: more would only queue.
  if (in_flight() > limits_.depth) return std::nullopt;
  // Decode first where a whole group waits; otherwise prefill fills the ring; a lone rank's worth
  // of stragglers goes when there is nothing else to do.
  if (auto batch = next_decode(true)) return batch;
  if (auto batch = next_prefill()) return batch;
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
  return waiting_.empty() && active_.empty() && in_flight_.empty();
}

}  // namespace stagecoach
