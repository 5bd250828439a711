#include "plan/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "base/error.h"

namespace stagecoach {
namespace {

struct Text {
  std::int64_t prompt = 1;
  bool decodes = true;
  std::int64_t new_tokens = 1;
};

struct Job {
  SchedulerLimits limits;
  std::vector<Text> texts;
  std::uint32_t seed = 0;
};

// Drives a scheduler as rank 0 does, returning micro-batches in order at random moments, and checks
// everything that it promises. What it launched, in order.
class Ring {
 public:
  explicit Ring(const Job& job)
      : job_(job),
        scheduler_(job.limits),
        random_(job.seed),
        entered_(job.texts.size()),
        drawn_(job.texts.size()) {
    for (std::size_t i = 0; i < job.texts.size(); ++i)
      scheduler_.submit(static_cast<std::int64_t>(i), job.texts[i].prompt, job.texts[i].decodes);
  }

  std::vector<ScheduledBatch> run() {
    while (!scheduler_.idle() && !testing::Test::HasFailure()) {
      const bool prefer_return = random_() % 3 == 0;
      if (!(prefer_return && !under_way_.empty())) {
        if (auto batch = scheduler_.next()) {
          launch(*std::move(batch));
          continue;
        }
      }
      // Waiting for nothing would wait for ever.
      if (under_way_.empty()) {
        ADD_FAILURE() << "stuck";
        break;
      }
      give_back();
    }
    EXPECT_FALSE(scheduler_.next().has_value());
    for (std::size_t i = 0; i < job_.texts.size(); ++i) {
      EXPECT_EQ(drawn_[i], job_.texts[i].decodes ? job_.texts[i].new_tokens : 0)
          << "sequence " << i;
      EXPECT_EQ(entered_[i], job_.texts[i].prompt + std::max<std::int64_t>(0, drawn_[i] - 1))
          << "sequence " << i;
    }
    return launched_;
  }

 private:
  void launch(ScheduledBatch batch) {
    EXPECT_EQ(batch.number, static_cast<std::int64_t>(launched_.size()));
    EXPECT_FALSE(batch.runs.empty());
    for (std::int64_t id : batch.admitted) EXPECT_TRUE(active_.insert(id).second);
    EXPECT_LE(static_cast<int>(active_.size()), job_.limits.max_active);
    std::int64_t rows = 0;
    std::set<std::int64_t> members;
    for (const ScheduledRun& run : batch.runs) {
      const auto i = static_cast<std::size_t>(run.sequence);
      EXPECT_TRUE(active_.contains(run.sequence));
      EXPECT_TRUE(members.insert(run.sequence).second) << "a sequence twice in one micro-batch";
      EXPECT_EQ(run.position, entered_[i]);
      EXPECT_GE(run.count, 1);
      entered_[i] += run.count;
      rows += run.count;
      EXPECT_EQ(run.last_of_prompt, entered_[i] >= job_.texts[i].prompt);
      // In passes, decode steps and prompts may share a micro-batch.
      if (batch.decode || run.position >= job_.texts[i].prompt) {
        EXPECT_EQ(run.count, 1);
        EXPECT_EQ(run.position, job_.texts[i].prompt + drawn_[i] - 1)
            << "decodes before its token is drawn";
      } else {
        EXPECT_LE(entered_[i], job_.texts[i].prompt);
      }
    }
    EXPECT_LE(rows, job_.limits.micro_batch_tokens);
    under_way_.push_back(batch);
    launched_.push_back(std::move(batch));
    if (job_.limits.pass_tokens > 0) {
      expect_place_in_pass();
    } else {
      EXPECT_LE(static_cast<int>(under_way_.size()), job_.limits.depth + 1);
    }
    EXPECT_EQ(scheduler_.in_flight(), static_cast<int>(under_way_.size()));
  }

  // A pass is micro-batches that follow one another, and no other one begins before it is out.
  void expect_place_in_pass() {
    const ScheduledBatch& batch = launched_.back();
    const bool begins = launched_.size() == 1 || launched_[launched_.size() - 2].last_of_pass;
    const ScheduledBatch& first = launched_[static_cast<std::size_t>(batch.pass)];
    EXPECT_EQ(begins, batch.pass == batch.number);
    EXPECT_EQ(under_way_.front().pass, batch.pass) << "one pass at a time";
    EXPECT_EQ(batch.pass_rows, first.pass_rows);
    EXPECT_LE(batch.pass_rows, job_.limits.pass_tokens);
    std::int64_t before = 0;
    for (auto i = static_cast<std::size_t>(batch.pass); i + 1 < launched_.size(); ++i)
      for (const ScheduledRun& run : launched_[i].runs) before += run.count;
    EXPECT_EQ(batch.pass_row, before);
    for (const ScheduledRun& run : batch.runs) before += run.count;
    EXPECT_EQ(batch.last_of_pass, before == batch.pass_rows);
  }

  void give_back() {
    const ScheduledBatch batch = under_way_.front();
    under_way_.pop_front();
    std::vector<std::int64_t> scored;
    for (const ScheduledRun& run : batch.runs) {
      const Text& text = job_.texts[static_cast<std::size_t>(run.sequence)];
      if (!run.last_of_prompt) continue;
      if (!text.decodes) {
        scored.push_back(run.sequence);
      } else if (++drawn_[static_cast<std::size_t>(run.sequence)] == text.new_tokens) {
        finish(run.sequence);
      }
    }
    scheduler_.returned(batch.number);
    for (std::int64_t id : scored) finish(id);
  }

  void finish(std::int64_t id) {
    active_.erase(id);
    scheduler_.finish(id);
  }

  const Job& job_;
  Scheduler scheduler_;
  std::mt19937 random_;
  std::vector<std::int64_t> entered_, drawn_;  // tokens, by sequence
  std::set<std::int64_t> active_;
  std::deque<ScheduledBatch> under_way_;
  std::vector<ScheduledBatch> launched_;
};

Job random_job(std::uint32_t seed) {
  std::mt19937 random(seed);
  const auto between = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  Job job;
  job.seed = seed;
  job.limits = {.micro_batch_tokens = between(0, 3) == 0 ? between(1, 4) : between(5, 300),
                .depth = between(1, 6),
                .max_active = between(1, 12)};
  const int texts = between(1, 20);
  for (int i = 0; i < texts; ++i)
    job.texts.push_back({.prompt = between(0, 4) == 0 ? between(100, 700) : between(1, 40),
                         .decodes = between(0, 4) != 0,
                         .new_tokens = between(1, 12)});
  return job;
}

TEST(Scheduler, EveryTokenEntersOnceInOrderAndAllFinish) {
  for (std::uint32_t seed = 0; seed < 1000 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Ring(random_job(seed)).run();
  }
}

TEST(Scheduler, InPassesToo) {
  for (std::uint32_t seed = 0; seed < 1000 && !HasFailure(); ++seed) {
    SCOPED_TRACE(seed);
    Job job = random_job(seed);
    job.limits.pass_tokens = 1 + seed * 37 % 900;
    Ring(job).run();
  }
}

TEST(Scheduler, APassTakesAllThatIsAtHand) {
  Scheduler scheduler(
      {.micro_batch_tokens = 256, .depth = 4, .max_active = 8, .pass_tokens = 1000});
  scheduler.submit(0, 3, true);
  scheduler.submit(1, 300, true);
  std::vector<ScheduledBatch> pass;
  while (auto batch = scheduler.next()) pass.push_back(*batch);
  ASSERT_EQ(pass.size(), 8U) << "two for each rank";
  EXPECT_EQ(pass.front().pass_rows, 303);
  for (const ScheduledBatch& batch : pass) scheduler.returned(batch.number);
  const auto decode = scheduler.next();
  ASSERT_TRUE(decode);
  EXPECT_EQ(decode->runs.size(), 2U) << "both sequences decode together";
  EXPECT_TRUE(decode->decode);
  EXPECT_FALSE(scheduler.next());
}

TEST(Scheduler, TheSameEventsGiveTheSameMicroBatches) {
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const Job job = random_job(seed);
    const auto first = Ring(job).run(), second = Ring(job).run();
    ASSERT_EQ(first.size(), second.size());
    for (std::size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(first[i].decode, second[i].decode);
      EXPECT_EQ(first[i].admitted, second[i].admitted);
      ASSERT_EQ(first[i].runs.size(), second[i].runs.size());
      for (std::size_t r = 0; r < first[i].runs.size(); ++r) {
        EXPECT_EQ(first[i].runs[r].sequence, second[i].runs[r].sequence);
        EXPECT_EQ(first[i].runs[r].position, second[i].runs[r].position);
        EXPECT_EQ(first[i].runs[r].count, second[i].runs[r].count);
      }
    }
  }
}

TEST(Scheduler, ALongPromptFillsTheRing) {
  Scheduler scheduler({.micro_batch_tokens = 256, .depth = 4, .max_active = 8});
  scheduler.submit(0, 400, true);
  int entered = 0;
  while (scheduler.next()) ++entered;
  EXPECT_EQ(entered, 5) << "one for each rank and one on its way";
}

TEST(Scheduler, DecodingSequencesAreDealtIntoAsManyGroupsAsRanks) {
  Scheduler scheduler({.micro_batch_tokens = 256, .depth = 3, .max_active = 32});
  for (std::int64_t id = 0; id < 6; ++id) scheduler.submit(id, 1, true);
  const auto prefill = scheduler.next();
  ASSERT_TRUE(prefill);
  EXPECT_EQ(prefill->runs.size(), 6U);
  EXPECT_FALSE(scheduler.next()) << "nothing to decode before a token is drawn";
  scheduler.returned(prefill->number);
  for (int group = 0; group < 3; ++group) {
    const auto decode = scheduler.next();
    ASSERT_TRUE(decode);
    EXPECT_TRUE(decode->decode);
    EXPECT_EQ(decode->runs.size(), 2U);
  }
  EXPECT_FALSE(scheduler.next());
}

TEST(Scheduler, ASequenceThatFinishesMakesRoomWhileOthersPrefill) {
  Scheduler scheduler({.micro_batch_tokens = 8, .depth = 1, .max_active = 2});
  scheduler.submit(0, 2, true);
  scheduler.submit(1, 20, true);
  scheduler.submit(2, 2, true);
  const auto first = scheduler.next();
  ASSERT_TRUE(first);
  EXPECT_EQ(first->admitted, (std::vector<std::int64_t>{0, 1}));
  scheduler.finish(0);
  scheduler.returned(first->number);
  const auto second = scheduler.next();
  ASSERT_TRUE(second);
  EXPECT_EQ(second->admitted, (std::vector<std::int64_t>{2}));
  EXPECT_EQ(second->runs.front().sequence, 1);
  EXPECT_EQ(second->runs.front().position, 6);
}

TEST(Scheduler, FinishForgetsASequenceWhereverItStands) {
  Scheduler scheduler({.micro_batch_tokens = 4, .depth = 1, .max_active = 1});
  scheduler.submit(0, 10, true);
  scheduler.submit(1, 10, true);
  const auto batch = scheduler.next();
  ASSERT_TRUE(batch);
  scheduler.finish(1);  // still waiting
  scheduler.finish(0);  // half prefilled
  scheduler.returned(batch->number);
  EXPECT_FALSE(scheduler.next());
  EXPECT_TRUE(scheduler.idle());
}

TEST(Scheduler, OnlyWhatIsUnderWayCanReturn) {
  Scheduler scheduler({.micro_batch_tokens = 4, .depth = 1, .max_active = 1});
  EXPECT_THROW(scheduler.returned(0), Error);
  scheduler.submit(0, 1, false);
  const auto batch = scheduler.next();
  ASSERT_TRUE(batch);
  scheduler.returned(batch->number);
  EXPECT_THROW(scheduler.returned(batch->number), Error);
}

TEST(PrefillRows, TwoForEachRankWithoutSliversWithinTheLimit) {
  EXPECT_EQ(prefill_rows(1000, 4, 256), 125);
  EXPECT_EQ(prefill_rows(1001, 4, 256), 126);
  EXPECT_EQ(prefill_rows(4000, 4, 256), 256);
  EXPECT_EQ(prefill_rows(40, 4, 256), 32);
  EXPECT_EQ(prefill_rows(40, 4, 8), 8);
  EXPECT_EQ(prefill_rows(40, 1, 256), 40);
}

// On one rank each micro-batch is back before the next one enters. Prompts that take several must
// not wait until the first sequences have drawn all their tokens.
TEST(Scheduler, PromptsDoNotWaitForOthersToEnd) {
  Scheduler scheduler({.micro_batch_tokens = 256, .depth = 1});
  constexpr int kSequences = 8, kTokens = 64;
  for (int i = 0; i < kSequences; ++i) scheduler.submit(i, 66, true);
  std::vector<int> drawn(kSequences);
  int micro_batches = 0;
  while (auto batch = scheduler.next()) {
    ++micro_batches;
    for (const ScheduledRun& run : batch->runs)
      if (run.last_of_prompt && ++drawn[static_cast<std::size_t>(run.sequence)] == kTokens)
        scheduler.finish(run.sequence);
    scheduler.returned(batch->number);
  }
  for (const int tokens : drawn) EXPECT_EQ(tokens, kTokens);
  // Three of prompts, a step each between them, and the steps of all together.
  EXPECT_LE(micro_batches, 3 + 3 + kTokens);
}

// Prompts that come back in two micro-batches decode as one group on each rank, not as two that
// read all weights in turn.
TEST(Scheduler, StragglersJoinAGroup) {
  for (const int depth : {1, 2, 4}) {
    Scheduler scheduler({.micro_batch_tokens = 256, .depth = depth});
    for (int i = 0; i < 8; ++i) scheduler.submit(i, 64, true);
    std::deque<ScheduledBatch> under_way;
    std::size_t largest = 0, smallest = 100;
    for (int returned = 0; returned < 100; ++returned) {
      while (auto batch = scheduler.next()) under_way.push_back(*std::move(batch));
      ASSERT_FALSE(under_way.empty());
      if (returned > 50) {
        largest = std::max(largest, under_way.front().runs.size());
        smallest = std::min(smallest, under_way.front().runs.size());
      }
      scheduler.returned(under_way.front().number);
      under_way.pop_front();
    }
    EXPECT_EQ(largest, static_cast<std::size_t>(8 / depth)) << depth;
    EXPECT_EQ(smallest, static_cast<std::size_t>(8 / depth)) << depth;
  }
}

}  // namespace
}  // namespace stagecoach
