#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "base/error.h"

namespace stagecoach {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Draws for one sequence; steps are positions, since the prompt is empty.
class OneSequence {
 public:
  explicit OneSequence(const SamplingParams& params, SequenceId id = 0) : id_(id) {
    sampler_.admit(id, params, 0);
  }
  void observe(std::vector<TokenId> ids) { sampler_.observe(id_, ids); }
  TokenId draw(std::vector<float> logits, std::int64_t step = 0) const {
    return sampler_.sample(id_, step, logits);
  }

  // Every token that `draws` steps give.
  std::set<TokenId> support(const std::vector<float>& logits, int draws = 3000) const {
    std::set<TokenId> tokens;
    for (int step = 0; step < draws; ++step) tokens.insert(draw(logits, step));
    return tokens;
  }

 private:
  SequenceId id_;
  Sampler sampler_;
};

SamplingParams greedy() {
  SamplingParams params;
  params.greedy = true;
  return params;
}

// Logits of given probabilities.
std::vector<float> logits_of(std::vector<double> probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheLowestId) {
  const OneSequence sequence(greedy());
  EXPECT_EQ(sequence.draw({1, 3, 2}), 1);
  EXPECT_EQ(sequence.draw({1, 3, 3, 3}), 1);
  EXPECT_EQ(sequence.draw({-5, -5}), 0);
  EXPECT_EQ(sequence.draw({-kInfinity, -7}), 1);
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsOnce) {
  SamplingParams params = greedy();
  params.repetition_penalty = 2;
  OneSequence sequence(params);
  sequence.observe({0, 0, 0});
  EXPECT_EQ(sequence.draw({4.0f, 1.9f}), 0) << "2 is still the larger";
  EXPECT_EQ(sequence.draw({4.0f, 2.1f}), 1);
  EXPECT_EQ(sequence.draw({-1.0f, -1.9f}), 1) << "-2 is smaller than -1.9";
  EXPECT_EQ(sequence.draw({-1.0f, -2.1f}), 0);
  sequence.observe({1});
  EXPECT_EQ(sequence.draw({4.0f, 2.1f}), 0) << "both are penalised now";
}

TEST(Sampler, MinNewTokensHoldsTheEndBack) {
  SamplingParams params = greedy();
  params.min_new_tokens = 2;
  params.eos_token_ids = {1, 99};  // one beyond the vocabulary does no harm
  Sampler sampler;
  sampler.admit(7, params, 10);
  const auto draw = [&](std::int64_t position) {
    std::vector<float> logits{0, 5, 1};
    return sampler.sample(7, position, logits);
  };
  EXPECT_EQ(draw(10), 2);
  EXPECT_EQ(draw(11), 2);
  EXPECT_EQ(draw(12), 1);
}

TEST(Sampler, TopKKeepsTheMostProbable) {
  SamplingParams params;
  params.top_k = 2;
  EXPECT_EQ(OneSequence(params).support({1, 3, 2, 2.5f}), (std::set<TokenId>{1, 3}));
  params.top_k = 1;
  EXPECT_EQ(OneSequence(params).support({1, 3, 3, 2}), (std::set<TokenId>{1, 2}))
      << "equals of the k-th stay";
  params.top_k = 100;
  EXPECT_EQ(OneSequence(params).support({1, 1, 1}).size(), 3U);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  SamplingParams params;
  const auto logits = logits_of({0.1, 0.4, 0.2, 0.3});
  params.top_p = 0.39;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1}));
  params.top_p = 0.5;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1, 3}));
  params.top_p = 0.75;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1, 2, 3}));
  params.top_p = 1e-9;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1})) << "one is always kept";
}

TEST(Sampler, MinPIsAShareOfTheMostProbable) {
  SamplingParams params;
  const auto logits = logits_of({0.1, 0.4, 0.19, 0.31});
  params.min_p = 0.5;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1, 3}));
  params.min_p = 0.45;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1, 2, 3}));
  params.min_p = 1;
  EXPECT_EQ(OneSequence(params).support(logits), (std::set<TokenId>{1}));
}

// Each case has another result if two neighbouring steps change places.
TEST(Sampler, StepsComeInTheOrderOfTheirDocumentation) {
  SamplingParams params;
  // Temperature before top-p: at 0.5 the probabilities 0.5, 0.3, 0.2 become 0.658, 0.237, 0.105.
  params.temperature = 0.5;
  params.top_p = 0.6;
  EXPECT_EQ(OneSequence(params).support(logits_of({0.5, 0.3, 0.2})), (std::set<TokenId>{0}));
  // Top-k before top-p: among the two most probable, 0.4 is 0.571.
  params = {};
  params.top_k = 2;
  params.top_p = 0.55;
  EXPECT_EQ(OneSequence(params).support(logits_of({0.3, 0.4, 0.2, 0.1})), (std::set<TokenId>{1}));
  // The penalty before top-k: 4 becomes 1, and is no longer among the two largest.
  params = {};
  params.repetition_penalty = 4;
  params.top_k = 2;
  OneSequence penalised(params);
  penalised.observe({0});
  EXPECT_EQ(penalised.support({4, 3, 2}), (std::set<TokenId>{1, 2}));
  // An end that is held back takes no place among the top k.
  params = {};
  params.min_new_tokens = 1;
  params.eos_token_ids = {0};
  params.top_k = 1;
  EXPECT_EQ(OneSequence(params).draw({9, 1, 2}), 2);
}

TEST(Sampler, ATinyTemperatureIsGreedy) {
  SamplingParams params;
  for (double temperature : {1e-3, 1e-30, 5e-324}) {
    params.temperature = temperature;
    EXPECT_EQ(OneSequence(params).support({0, 2, 1, -3}, 50), (std::set<TokenId>{1}))
        << temperature;
  }
}

TEST(Sampler, DrawsDependOnSeedSequenceAndStepAlone) {
  const std::vector<float> logits(64, 0.0f);
  const auto draws = [&](std::uint64_t seed, SequenceId id) {
    SamplingParams params;
    params.seed = seed;
    std::vector<TokenId> tokens;
    for (int step = 0; step < 32; ++step)
      tokens.push_back(OneSequence(params, id).draw(logits, step));
    return tokens;
  };
  EXPECT_EQ(draws(1, 5), draws(1, 5));
  EXPECT_NE(draws(1, 5), draws(2, 5));
  EXPECT_NE(draws(1, 5), draws(1, 6));

  // Beside others, in another order and after another history: the same.
  SamplingParams params;
  params.seed = 1;
  Sampler sampler;
  for (SequenceId id : {9, 5, 2}) sampler.admit(id, params, 100 + id);
  std::vector<TokenId> tokens(32);
  for (int step = 31; step >= 0; --step)
    for (SequenceId id : {2, 5, 9}) {
      std::vector<float> scratch = logits;
      const TokenId token = sampler.sample(id, 100 + id + step, scratch);
      if (id == 5) tokens[static_cast<std::size_t>(step)] = token;
    }
  EXPECT_EQ(tokens, draws(1, 5));
}

// A fixed seed: this verdict never changes by chance.
TEST(Sampler, FrequenciesFollowTheSoftmax) {
  constexpr int kDraws = 20000;
  const std::vector<float> logits{0.0f, 1.5f, -1.0f, 0.7f, -2.5f, 0.2f, 1.0f, -0.3f};
  SamplingParams params;
  params.seed = 12345;
  params.temperature = 1.3;
  const OneSequence sequence(params);
  std::vector<int> counts(logits.size());
  for (int step = 0; step < kDraws; ++step)
    ++counts[static_cast<std::size_t>(sequence.draw(logits, step))];
  double sum = 0, chi_square = 0;
  for (float logit : logits) sum += std::exp(logit / 1.3);
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double expected = kDraws * std::exp(logits[i] / 1.3) / sum;
    chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT_LT(chi_square, 30) << "7 degrees of freedom: 99.99 % lie below";
}

TEST(Sampler, UniformDrawsFillTheUnitInterval) {
  double sum = 0;
  for (std::uint64_t step = 0; step < 10000; ++step) {
    const double u = uniform_draw(3, 4, step);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
}

TEST(Sampler, LogitsThatAreNoNumbersAreRefused) {
  for (float bad : {std::nanf(""), kInfinity}) {
    for (bool is_greedy : {true, false}) {
      SamplingParams params;
      params.greedy = is_greedy;
      try {
        OneSequence(params).draw({0, bad, 1});
        ADD_FAILURE() << bad << " was accepted";
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::kData);
      }
    }
  }
}

TEST(SamplingParams, ValidateNamesTheFlag) {
  const auto message = [](auto spoil) -> std::string {
    SamplingParams params;
    spoil(params);
    try {
      params.validate();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      return error.what();
    }
    return "accepted";
  };
  const double nan = std::nan("");
  EXPECT_EQ(message([](SamplingParams&) {}), "accepted");
  for (double t : {0.0, -1.0, nan, HUGE_VAL})
    EXPECT_NE(message([&](SamplingParams& p) { p.temperature = t; }).find("--temperature"),
              std::string::npos)
        << t;
  for (double t : {0.0, -0.1, 1.01, nan})
    EXPECT_NE(message([&](SamplingParams& p) { p.top_p = t; }).find("--top-p"), std::string::npos)
        << t;
  for (double t : {-0.1, 1.01, nan})
    EXPECT_NE(message([&](SamplingParams& p) { p.min_p = t; }).find("--min-p"), std::string::npos)
        << t;
  for (double t : {0.0, -1.0, nan, HUGE_VAL})
    EXPECT_NE(
        message([&](SamplingParams& p) { p.repetition_penalty = t; }).find("--repetition-penalty"),
        std::string::npos)
        << t;
  EXPECT_NE(message([](SamplingParams& p) { p.top_k = -1; }).find("--top-k"), std::string::npos);
  EXPECT_NE(message([](SamplingParams& p) { p.min_new_tokens = -1; }).find("--min-new-tokens"),
            std::string::npos);
}

TEST(LogProbability, AgreesWithExtendedPrecision) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 8);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> logits(5000);
    for (float& logit : logits) logit = normal(random) + static_cast<float>(100 * round);
    const long double top = *std::max_element(logits.begin(), logits.end());
    long double sum = 0;
    for (float logit : logits) sum += std::exp(static_cast<long double>(logit) - top);
    for (TokenId target : {0, 17, 4999}) {
      const long double expected =
          static_cast<long double>(logits[static_cast<std::size_t>(target)]) - top - std::log(sum);
      EXPECT_NEAR(log_probability(logits, target), static_cast<double>(expected), 1e-11);
    }
  }
  EXPECT_EQ(log_probability(std::vector<float>{3.5f}, 0), 0);
  EXPECT_EQ(log_probability(std::vector<float>{0, -kInfinity}, 1), -kInfinity);
}

}  // namespace
}  // namespace stagecoach
