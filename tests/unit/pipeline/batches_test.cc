#include <gtest/gtest.h>

#include <deque>
#include <map>
#include <set>

#include "base/error.h"
#include "pipeline/text_batches.h"
#include "pipeline/timing_batches.h"

namespace stagecoach {
namespace {

// Token that the imagined model draws at a position.
TokenId drawn_at(SequenceId id, std::int64_t position) {
  return static_cast<TokenId>(1000 * (id + 1) + position);
}

// What a ring of ranks would answer.
BatchResult answer(const MicroBatch& batch) {
  BatchResult result;
  result.micro_batch = batch.label.micro_batch;
  for (const TokenRun& run : batch.runs) {
    if (!run.targets.empty()) {
      BatchResult::LogProbs values{run.sequence, run.position, {}};
      for (std::size_t i = 0; i < run.targets.size(); ++i)
        if (run.targets[i] >= 0) values.values.push_back(-static_cast<double>(run.targets[i]));
      result.log_probs.push_back(values);
    }
    if (run.sample)
      result.tokens.push_back({run.sequence, drawn_at(run.sequence, run.position + run.count())});
  }
  return result;
}

// Enters all that may enter, then returns the oldest, until the source is done. What entered.
std::vector<MicroBatch> drive(BatchSource& source) {
  std::vector<MicroBatch> entered;
  std::deque<std::size_t> under_way;
  while (!source.done()) {
    if (auto batch = source.next()) {
      under_way.push_back(entered.size());
      entered.push_back(*std::move(batch));
      continue;
    }
    if (under_way.empty()) {
      ADD_FAILURE() << "stuck";
      break;
    }
    const BatchResult result = answer(entered[under_way.front()]);
    under_way.pop_front();
    source.returned(result);
  }
  EXPECT_TRUE(under_way.empty());
  return entered;
}

TextRequest generate(SequenceId id, std::int64_t prompt, std::int64_t new_tokens) {
  TextRequest request{
      .sequence = id, .tokens = {}, .score = false, .max_new_tokens = new_tokens, .sampling = {}};
  for (std::int64_t i = 0; i < prompt; ++i)
    request.tokens.push_back(static_cast<TokenId>(100 * id + i));
  return request;
}

struct Seen {
  std::map<SequenceId, std::vector<TokenId>> tokens;
  std::map<SequenceId, std::vector<double>> log_probs;
  std::vector<SequenceId> admitted, finished;

  // `last`: tokens that end a sequence.
  TextEvents events(const std::set<TokenId>& last = {}) {
    return {.admitted = [this](SequenceId id) { admitted.push_back(id); },
            .token =
                [this, last](SequenceId id, TokenId token) {
                  tokens[id].push_back(token);
                  return !last.contains(token);
                },
            .log_probs =
                [this](SequenceId id, std::int64_t position, std::span<const double> values) {
                  EXPECT_EQ(position, static_cast<std::int64_t>(log_probs[id].size()));
                  log_probs[id].insert(log_probs[id].end(), values.begin(), values.end());
                },
            .returned = {},
            .finished = [this](SequenceId id) { finished.push_back(id); }};
  }
};

TEST(TextBatchesTest, FeedsThePromptThenEveryDrawnToken) {
  Seen seen;
  TextBatches batches({.micro_batch_tokens = 4, .depth = 2, .max_active = 4}, 1000,
                      {generate(0, 10, 3), generate(1, 1, 5)}, seen.events());
  const auto entered = drive(batches);
  EXPECT_EQ(seen.tokens[0],
            (std::vector<TokenId>{drawn_at(0, 10), drawn_at(0, 11), drawn_at(0, 12)}));
  EXPECT_EQ(seen.tokens[1].size(), 5U);
  EXPECT_EQ((std::set<SequenceId>(seen.finished.begin(), seen.finished.end())),
            (std::set<SequenceId>{0, 1}));
  EXPECT_EQ(seen.finished.size(), 2U);
  std::map<SequenceId, std::vector<TokenId>> fed;
  for (const MicroBatch& batch : entered)
    for (const TokenRun& run : batch.runs) {
      EXPECT_EQ(run.position, static_cast<std::int64_t>(fed[run.sequence].size()));
      fed[run.sequence].insert(fed[run.sequence].end(), run.ids.begin(), run.ids.end());
      if (batch.label.phase == Phase::kDecode) {
        EXPECT_TRUE(run.sample);
        EXPECT_EQ(run.count(), 1);
      } else {
        EXPECT_EQ(run.sample, run.position + run.count() == (run.sequence == 0 ? 10 : 1));
      }
      EXPECT_TRUE(run.targets.empty());
    }
  // The last token drawn is never fed.
  EXPECT_EQ(fed[0],
            (std::vector<TokenId>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, drawn_at(0, 10), drawn_at(0, 11)}));
}

TEST(TextBatchesTest, EndsWhenTheReaderHasEnoughOrTheContextIsFull) {
  Seen stopped;
  TextBatches stopping({.micro_batch_tokens = 8, .depth = 1, .max_active = 4}, 1000,
                       {generate(0, 3, 100)}, stopped.events({drawn_at(0, 5)}));
  drive(stopping);
  EXPECT_EQ(stopped.tokens[0].back(), drawn_at(0, 5));
  EXPECT_EQ(stopped.tokens[0].size(), 3U);

  // Context 6, prompt 3: tokens at positions 3, 4 and 5 are fed, and the one after them is drawn.
  Seen full;
  TextBatches filling({.micro_batch_tokens = 8, .depth = 1, .max_active = 4}, 6,
                      {generate(0, 3, 100)}, full.events());
  for (const MicroBatch& batch : drive(filling))
    for (const TokenRun& run : batch.runs) EXPECT_LE(run.position + run.count(), 6);
  EXPECT_EQ(full.tokens[0].size(), 4U);

  // A prompt that fills the context still gets its one token.
  Seen brim;
  TextBatches brimming({.micro_batch_tokens = 8, .depth = 1, .max_active = 4}, 3,
                       {generate(0, 3, 100)}, brim.events());
  drive(brimming);
  EXPECT_EQ(brim.tokens[0].size(), 1U);
}

TEST(TextBatchesTest, EverySequenceIsAdmittedOnceAndDroppedBeforeTheNextTakesItsPlace) {
  Seen seen;
  std::vector<TextRequest> requests;
  for (SequenceId id = 0; id < 9; ++id)
    requests.push_back(generate(id, 1 + id * 7 % 5, 1 + id % 4));
  TextBatches batches({.micro_batch_tokens = 6, .depth = 2, .max_active = 3}, 1000, requests,
                      seen.events());
  std::set<SequenceId> alive, ever;
  for (const MicroBatch& batch : drive(batches)) {
    for (const Control& control : batch.controls) {
      if (control.kind == Control::Kind::kAdmit) {
        EXPECT_TRUE(ever.insert(control.sequence).second);
        EXPECT_TRUE(alive.insert(control.sequence).second);
        EXPECT_EQ(control.prompt_length, 1 + control.sequence * 7 % 5);
      } else {
        EXPECT_EQ(alive.erase(control.sequence), 1U);
      }
      EXPECT_LE(alive.size(), 3U);
    }
    for (const TokenRun& run : batch.runs) EXPECT_TRUE(alive.contains(run.sequence));
  }
  EXPECT_EQ(ever.size(), 9U);
  EXPECT_EQ(seen.admitted.size(), 9U);
  EXPECT_EQ(seen.finished.size(), 9U);
}

TEST(TextBatchesTest, ScoresEveryTokenAfterTheFirst) {
  for (std::int64_t length : {1, 2, 9, 30}) {
    Seen seen;
    TextRequest text = generate(0, length, 0);
    text.score = true;
    TextBatches batches({.micro_batch_tokens = 4, .depth = 2, .max_active = 1}, 1000, {text},
                        seen.events());
    for (const MicroBatch& batch : drive(batches))
      for (const TokenRun& run : batch.runs) EXPECT_FALSE(run.sample);
    std::vector<double> expected;
    for (std::int64_t i = 1; i < length; ++i) expected.push_back(-static_cast<double>(i));
    EXPECT_EQ(seen.log_probs[0], expected);
    EXPECT_TRUE(seen.tokens.empty());
    EXPECT_EQ(seen.finished, std::vector<SequenceId>{0});
  }
}

TEST(TextBatchesTest, APassIsADecodeStep) {
  Seen seen;
  TextBatches batches({.micro_batch_tokens = 8, .depth = 1, .max_active = 1}, 1000,
                      {generate(0, 3, 4)}, seen.events());
  std::vector<std::int64_t> passes;
  for (const MicroBatch& batch : drive(batches))
    if (batch.label.phase == Phase::kDecode) passes.push_back(batch.label.pass);
  EXPECT_EQ(passes, (std::vector<std::int64_t>{1, 2, 3}));
}

TEST(TextBatchesTest, AnAnswerWithoutATokenIsNoReasonToReadBeyondTheText) {
  Seen seen;
  TextBatches batches({.micro_batch_tokens = 8, .depth = 1, .max_active = 1}, 1000,
                      {generate(0, 3, 4)}, seen.events());
  const auto batch = batches.next();
  ASSERT_TRUE(batch);
  batches.returned({.micro_batch = batch->label.micro_batch, .tokens = {}, .log_probs = {}});
  EXPECT_THROW(batches.next(), Error);
}

TEST(TimingBatchesTest, PrefillPassesAreNumberedAndWhole) {
  TimingBatches study({.decode = false,
                       .tokens = 100,
                       .batch = 3,
                       .warmup = 2,
                       .repeat = 4,
                       .micro_batch_tokens = 64,
                       .depth = 2,
                       .embed = true,
                       .vocab_size = 50});
  std::map<std::int64_t, std::int64_t> rows;
  std::int64_t number = 0, last_pass = -2, admits = 0;
  for (const MicroBatch& batch : drive(study)) {
    EXPECT_EQ(batch.label.micro_batch, number++);
    EXPECT_EQ(batch.label.phase, Phase::kPrefill);
    EXPECT_GE(batch.label.pass, last_pass) << "a pass starts when the one before has returned";
    last_pass = batch.label.pass;
    EXPECT_LE(total_rows(batch.runs), 64);
    rows[batch.label.pass] += total_rows(batch.runs);
    admits += static_cast<std::int64_t>(batch.controls.size());
    for (const TokenRun& run : batch.runs) {
      EXPECT_EQ(run.sample, run.position + run.count() == 100);
      for (TokenId id : run.ids) EXPECT_TRUE(id >= 0 && id < 50);
    }
  }
  EXPECT_EQ(rows, (std::map<std::int64_t, std::int64_t>{
                      {-2, 300}, {-1, 300}, {0, 300}, {1, 300}, {2, 300}, {3, 300}}));
  EXPECT_EQ(admits, 3);
  EXPECT_EQ(study.pass_ms().size(), 4U);
}

TEST(TimingBatchesTest, DecodeFillsItsContextOnceThenSteps) {
  TimingBatches study({.decode = true,
                       .tokens = 40,
                       .batch = 5,
                       .warmup = 1,
                       .repeat = 3,
                       .micro_batch_tokens = 64,
                       .depth = 2,
                       .embed = true,
                       .vocab_size = 9});
  std::map<std::int64_t, std::int64_t> rows;
  for (const MicroBatch& batch : drive(study)) {
    rows[batch.label.pass] += total_rows(batch.runs);
    EXPECT_EQ(batch.label.phase, batch.label.pass == -2 ? Phase::kNone : Phase::kDecode);
    if (batch.label.pass == -2) continue;
    EXPECT_LE(batch.runs.size(), 3U) << "5 sequences in 2 groups";
    for (const TokenRun& run : batch.runs) EXPECT_EQ(run.position, 40);
  }
  EXPECT_EQ(rows,
            (std::map<std::int64_t, std::int64_t>{{-2, 200}, {-1, 5}, {0, 5}, {1, 5}, {2, 5}}));
  EXPECT_EQ(study.pass_ms().size(), 3U);
}

TEST(TimingBatchesTest, WithoutWarmUp) {
  TimingBatches prefill({.decode = false, .tokens = 1, .batch = 1, .warmup = 0, .repeat = 1});
  EXPECT_EQ(drive(prefill).size(), 1U);
  TimingBatches decode({.decode = true, .tokens = 1, .batch = 1, .warmup = 0, .repeat = 2});
  EXPECT_EQ(drive(decode).size(), 3U);
  EXPECT_EQ(decode.pass_ms().size(), 2U);
}

TEST(TimingBatchesTest, HiddenStatesAreOrdinaryAndRepeatable) {
  TimingStudy study{.decode = false, .tokens = 8, .batch = 1, .warmup = 0, .repeat = 1};
  TimingBatches embedded(study);
  std::vector<float> hidden(64, 7.0f), again(64);
  EXPECT_FALSE(embedded.fill_hidden({}, hidden));
  EXPECT_EQ(hidden[0], 7.0f);
  study.embed = false;
  TimingBatches random(study);
  const auto batch = random.next();
  ASSERT_TRUE(batch);
  EXPECT_TRUE(random.fill_hidden(*batch, hidden));
  EXPECT_TRUE(random.fill_hidden(*batch, again));
  EXPECT_EQ(hidden, again);
  for (float value : hidden) EXPECT_TRUE(value >= -1 && value < 1) << value;
  EXPECT_GT(std::set<float>(hidden.begin(), hidden.end()).size(), 32U);
}

TEST(TimingStudiesTest, OneAfterTheOther) {
  const TimingStudy prefill{.decode = false, .tokens = 10, .batch = 1, .warmup = 1, .repeat = 2};
  TimingStudy decode = prefill;
  decode.decode = true;
  TimingStudies studies({prefill, decode});
  const auto entered = drive(studies);
  EXPECT_EQ(entered.size(), 3U + 4U);
  EXPECT_EQ(entered[2].label.phase, Phase::kPrefill);
  EXPECT_EQ(entered[3].label.phase, Phase::kNone);
  EXPECT_EQ(entered[4].label.phase, Phase::kDecode);
  EXPECT_EQ(studies.pass_ms(0).size(), 2U);
  EXPECT_EQ(studies.pass_ms(1).size(), 2U);
  EXPECT_TRUE(studies.done());
}

}  // namespace
}  // namespace stagecoach
